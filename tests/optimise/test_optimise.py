"""`ferry optimise` as a whole: every variant is a row, the best becomes a version."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from optimised_models import VARIANTS, make_repository
from tritonclient.grpc.model_config_pb2 import ModelConfig

from ferry.cli import main
from shared.errors import BadModel
from shared.settings import Settings
from worker.optimise.cache import cache_directory
from worker.optimise.subjects import Original
from worker.optimise.tuning import making
from worker.optimise.tuning import optimise as tuning
from worker.optimise.tuning.machine import this_machine
from worker.optimise.tuning.measuring import Arrangement
from worker.optimise.tuning.optimise import Optimised, configure, optimise
from worker.optimise.tuning.run import OptimiseOrder, work_key
from worker.optimise.tuning.task import Task
from worker.repository.models import read_model

HANG_LIMIT_SECONDS = 8.0
MEMBERS = {
    "name", "runtime", "precision", "rows_per_second", "latency_seconds", "size_bytes",
    "accuracy_drop", "cosine", "kernels", "verdict", "chosen",
}  # fmt: skip


def environ(directory: Path) -> dict[str, str]:
    return {**os.environ, "XDG_CACHE_HOME": str(directory / "cache")}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("optimise")
    make_repository(found / "models")
    return found


@pytest.fixture(scope="module")
def done(directory: Path) -> Iterator[Optimised]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(making, "SHORTEST_LIMIT_SECONDS", HANG_LIMIT_SECONDS)
        order = OptimiseOrder("busy", budget_seconds=30.0)
        patch.setattr(making, "MAKING_SHARE", 20.0)
        patch.setattr(tuning, "SHORTEST_MEASURING_SECONDS", 2.0)
        yield optimise(order, directory / "models", environ(directory), lambda _: None, VARIANTS)


def row(done: Optimised, name: str) -> Any:
    return next(each for each in done.report["variants"] if each["name"] == name)


def test_the_fastest_becomes_a_version_that_answers(done: Optimised, directory: Path) -> None:
    assert done.directory == directory / "models" / "busy" / "2"
    assert row(done, "quick")["chosen"]
    assert [each["name"] for each in done.report["variants"] if each["chosen"]] == ["quick"]


def test_the_config_is_set_to_what_was_best(done: Optimised, directory: Path) -> None:
    model = read_model(directory / "models", "busy", "2")
    chosen = row(done, "quick")

    assert model.config.instance_groups[0].count == chosen["instances"]
    assert model.config.parameters["INTRA_OP_THREAD_COUNT"] == str(chosen["threads"])
    assert model.spec.max_batch_size == 4


def test_what_was_best_together_is_the_preferred_batch_where_more_is_worse() -> None:
    variant = next(each for each in VARIANTS if each.name == "quick")
    message = ModelConfig(max_batch_size=8)
    message.dynamic_batching.preferred_batch_size.append(6)

    configure(message, variant, Arrangement(2, 1), together=4)
    assert list(message.dynamic_batching.preferred_batch_size) == [4]
    assert message.max_batch_size == 8

    configure(message, variant, Arrangement(2, 1), together=None)
    assert not message.dynamic_batching.preferred_batch_size


def test_report_json_is_beside_the_version_with_all_members(done: Optimised) -> None:
    assert done.directory is not None
    report = json.loads((done.directory / "report.json").read_text())

    assert {"variants", "machine", "versions", "digests"} <= report.keys()
    assert report["complete"]
    assert all(each.keys() >= MEMBERS for each in report["variants"])
    assert report["machine"]["cores"] >= 1
    assert report["versions"]["torch"]
    assert report["digests"]["quick"] == row(done, "quick")["digest"]
    assert (done.directory / "report.md").read_text().count("| quick |") == 1
    assert "<svg" in (done.directory / "report.html").read_text()


@pytest.mark.parametrize(
    ("name", "verdict", "reason"),
    [
        ("slow", "slower", "times the original's speed"),
        ("wrong", "failed", "relative difference"),
        ("crash", "failed", "not made: its process was ended by SIGABRT"),
        ("hang", "failed", "not made: it ran past its limit of 8 s"),
        ("unproved", "failed", "none of its 1 layers runs in INT8 here"),
        ("elsewhere", "not applicable", "it is for another machine"),
        ("made of it", "not applicable", "it is made from crash, which there is not"),
    ],
)
def test_whatever_happens_is_a_row(done: Optimised, name: str, verdict: str, reason: str) -> None:
    found = row(done, name)

    assert found["verdict"] == verdict
    assert reason in found["reason"]
    assert not found["chosen"]


def test_what_runs_is_measured_also_where_it_cannot_be_chosen(done: Optimised) -> None:
    for name in ("original", "quick", "slow", "wrong"):
        found = row(done, name)
        low, high = found["rows_per_second_spread"]
        assert 0 < low <= found["rows_per_second"] <= high
        assert found["latency_seconds"] > 0
        assert found["load_seconds"] > 0
        assert found["peak_memory_bytes"] > 0


def test_an_interrupt_keeps_what_is_finished_and_the_next_run_goes_on(tmp_path: Path) -> None:
    models = make_repository(tmp_path / "models")
    order = OptimiseOrder("busy", budget_seconds=20.0)

    def interrupt(line: str) -> None:
        if line.startswith("quick: ok"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        optimise(order, models, environ(tmp_path), interrupt, VARIANTS[:1])
    (kept,) = (tmp_path / "cache").rglob("report.json")
    partial = json.loads(kept.read_text())
    optimise(order, models, environ(tmp_path), lambda _: None, VARIANTS[:1])

    assert not partial["complete"]
    assert [each["name"] for each in partial["variants"]] == ["original", "quick"]
    assert (tmp_path / "cache" / "ferry" / "optimise" / "made").read_text() == "quick\n"
    assert (models / "busy" / "2" / "model.pt").is_file()
    assert not list((tmp_path / "cache").rglob("report.json"))


def test_what_is_finished_is_found_again_whatever_order_a_config_has(directory: Path) -> None:
    task = Task(directory / "models", "busy", "1", Settings(), Path())
    order, spec = OptimiseOrder("busy"), task.model.spec
    keys = set()
    for parameters in ({"a": "1", "b": "2"}, {"b": "2", "a": "1"}, {"a": "1", "b": "3"}):
        changed = replace(task.model, spec=spec.with_changes(parameters=parameters))
        task.__dict__["model"] = changed
        keys.add(work_key(order, task, this_machine()))

    assert len(keys) == 2


def test_unfinished_work_is_kept_nowhere_that_others_may_write(directory: Path) -> None:
    with pytest.raises(BadModel, match="HOME and XDG_CACHE_HOME are unset"):
        optimise(OptimiseOrder("busy"), directory / "models", {}, variants=VARIANTS)


def test_a_cache_that_is_another_users_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environ = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    assert cache_directory(environ) == tmp_path / "cache" / "ferry"
    monkeypatch.setattr(os, "getuid", lambda: 4242)

    with pytest.raises(BadModel, match="cache/ferry belongs to another user"):
        cache_directory(environ)


@pytest.mark.parametrize(
    ("order", "said"),
    [
        (OptimiseOrder("nothing"), "holds no model 'nothing'"),
        (OptimiseOrder("../models/busy"), "holds no model '../models/busy'"),
        (OptimiseOrder("busy", version="7"), "the model 'busy' has no version 7: 1"),
        (
            OptimiseOrder("busy", original=Original("optimised_models:nothing")),
            "--original optimised_models:nothing: ",
        ),
        (OptimiseOrder("busy", data=Path("none.csv")), "--data none.csv: no such file or folder"),
        (OptimiseOrder("busy", only=("magic",)), "--only magic: expected one of quick, slow"),
    ],
)
def test_a_wrong_order_is_refused_before_anything_is_made(
    directory: Path, order: OptimiseOrder, said: str
) -> None:
    with pytest.raises(BadModel) as refused:
        optimise(order, directory / "models", environ(directory), variants=VARIANTS)

    assert said in str(refused.value)


@pytest.mark.parametrize(
    "options",
    [["--budget", "soon"], ["--budget", "0"], ["--max-accuracy-drop", "2"], ["--objective", "x"]],
)
def test_an_option_that_cannot_be_read_is_named(
    options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["optimise", "busy", *options])

    assert ended.value.code == 2
    assert options[0] in capsys.readouterr().err
