"""Bulk prediction over a real worker: each row once, in order, right, whatever is killed."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from ferry_processes import ROOT, environment, running_worker
from scripted_models import add_model
from waiting import wait_until
from worker_processes import seen

from jobs.bulk.bulk import Bulk, Progress, predict
from shared.errors import BadRequest, ModelNotReady, UnknownModel
from shared.operations.model_control import ModelControl
from shared.registry.registry import Registry
from shared.settings import Settings
from shared.wire.client import connect

ROWS = 20_000
KILLS = 4


class Doubling(torch.nn.Module):
    """Doubles x, and raises for rows that begin with -1."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if bool((x[:, 0] == -1.0).any()):
            raise ValueError("minus one")
        return x * 2.0


@pytest.fixture(scope="module")
def model(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    repository = tmp_path_factory.mktemp("bulk")
    group = "instance_group [ { count: 2 kind: KIND_CPU } ]"
    add_model(repository, Doubling(), more=group, max_batch_size=16)
    settings = Settings(
        redis_url=redis_url, key_prefix="bulk", models=str(repository), standby_seconds=0.0,
        model_control_mode="explicit", load_models="*",
    )  # fmt: skip
    with running_worker(settings):
        yield settings


def write_rows(file: Path, count: int = ROWS, poison: frozenset[int] = frozenset()) -> Path:
    with file.open("w") as stream:
        stream.write("a,b\n")
        for number in range(count):
            stream.write(f"{-1 if number in poison else number},{number + 0.5}\n")
    return file


def answers(file: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def doubled(number: int) -> dict[str, object]:
    prediction = {"y": [2.0 * number, 2.0 * number + 1.0]}
    return {"index": number, "source": f"row {number + 1}", "prediction": prediction}


def run(bulk: Bulk, settings: Settings) -> Progress:
    told: list[Progress] = []
    with connect(settings.redis_url) as redis:
        done = predict(bulk, redis, settings, told.append)
    assert not told or told[-1].done == done.done  # all may have been written before
    return done


def start(settings: Settings, *arguments: Path | str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "ferry", "predict", "doubling", *map(str, arguments)]
    environ = os.environ | environment(settings)
    return subprocess.Popen(command, env=environ, cwd=ROOT, stderr=subprocess.PIPE, text=True)


def grown(file: Path, size: int) -> bool:
    return file.exists() and file.stat().st_size > size


def test_each_row_is_answered_once_and_in_order(model: Settings, tmp_path: Path) -> None:
    bulk = Bulk("doubling", write_rows(tmp_path / "rows.csv", 1001), tmp_path / "out.ndjson")

    assert run(bulk, model) == Progress(1001, 0, 1001)

    assert answers(bulk.output) == [doubled(number) for number in range(1001)]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out.ndjson", "rows.csv"]


def test_what_a_model_fails_on_is_an_error_of_that_row_alone(
    model: Settings, tmp_path: Path
) -> None:
    poison = frozenset({3, 40, 41, 99})
    bulk = Bulk("doubling", write_rows(tmp_path / "rows.csv", 100, poison), tmp_path / "out.ndjson")

    assert run(bulk, model) == Progress(100, 4, 100)

    for number, line in enumerate(answers(bulk.output)):
        if number in poison:
            assert (line["index"], "minus one" in str(line["error"])) == (number, True)
        else:
            assert line == doubled(number)


def test_a_command_that_is_killed_again_and_again_loses_and_repeats_no_row(
    model: Settings, tmp_path: Path
) -> None:
    rows, output = write_rows(tmp_path / "rows.csv"), tmp_path / "out.ndjson"
    partial = tmp_path / "out.ndjson.partial"
    moments = random.Random(7)

    killed = 0
    while killed < KILLS and not output.exists():
        size = partial.stat().st_size if partial.exists() else 0
        process = start(model, rows, output)
        wait_until(lambda: output.exists() or grown(partial, size), 60, "it goes on")  # noqa: B023
        time.sleep(moments.uniform(0.0, 0.05))
        process.kill()
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
    if not output.exists():
        said = start(model, rows, output).communicate(timeout=120)[1]
        assert said.strip().endswith(f"{ROWS} rows, 0 of them errors")

    assert killed >= KILLS // 2
    assert answers(output) == [doubled(number) for number in range(ROWS)]


def test_an_instance_that_is_killed_costs_no_row(model: Settings, tmp_path: Path) -> None:
    rows, output = write_rows(tmp_path / "rows.csv"), tmp_path / "out.ndjson"
    with seen(model, "doubling") as served:
        process = start(model, rows, output)
        os.kill(served.holder().pid, signal.SIGKILL)
        process.communicate(timeout=120)
        assert process.returncode == 0
        served.wait_ready(2)

    assert answers(output) == [doubled(number) for number in range(ROWS)]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "ferry-test", str(place)]
    if os.getuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only who may mount can fill a disk")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize(
    ("ending", "rows", "fit"),
    [("ndjson", 6000, 3000), ("parquet", 3600, 3600)],  # of the latter, its lines
)
def test_a_full_disk_is_told_and_there_it_goes_on(
    model: Settings, tmp_path: Path, small_disk: Path, ending: str, rows: int, fit: int
) -> None:
    if ending == "parquet":
        pytest.importorskip("pyarrow", reason="no pyarrow")
    output = small_disk / f"out.{ending}"
    bulk = Bulk("doubling", write_rows(tmp_path / "rows.csv", rows), output)

    with pytest.raises(OSError, match="No space left"):
        run(bulk, model)
    left = {file.name for file in small_disk.iterdir()}
    written = (small_disk / f"out.{ending}.partial").read_text().count("\n")
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    again = run(bulk, model)

    assert left == {f"out.{ending}.partial", f"out.{ending}.progress"}
    assert fit <= written <= rows
    assert again == Progress(rows, 0, rows)
    assert [file.name for file in small_disk.iterdir()] == [output.name]
    if ending == "ndjson":
        assert answers(output) == [doubled(number) for number in range(rows)]


def test_who_resumes_must_ask_the_same(model: Settings, tmp_path: Path) -> None:
    rows, output = write_rows(tmp_path / "rows.csv", 10), tmp_path / "out.ndjson"
    bulk = Bulk("doubling", rows, output)

    class Stopped(Exception):
        pass

    def stop(_: Progress) -> None:
        raise Stopped

    with connect(model.redis_url) as redis, pytest.raises(Stopped):
        predict(bulk, redis, model, stop)
    write_rows(rows, 11)

    with pytest.raises(BadRequest, match=r"out\.ndjson\.progress: .* another input_state"):
        run(bulk, model)
    assert run(bulk._replace(restart=True), model).done == 11
    with pytest.raises(BadRequest, match=r"out\.ndjson: it is there already"):
        run(bulk, model)


def test_what_cannot_be_asked_leaves_nothing_behind(model: Settings, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.csv", 3)
    bulk = Bulk("doubling", rows, tmp_path / "out.ndjson")
    (tmp_path / "rows.txt").write_text("1,2\n")

    for wrong, error, says in (
        (bulk._replace(name="other"), UnknownModel, "'other'"),
        (bulk._replace(version="7"), UnknownModel, "7"),
        (bulk._replace(input=tmp_path / "none.csv"), BadRequest, "none.csv: no such file"),
        (bulk._replace(input=tmp_path / "rows.txt"), BadRequest, "rows.txt: expected a folder"),
        (bulk._replace(input=tmp_path), BadRequest, "no pictures"),
        (bulk._replace(output=rows, restart=True), BadRequest, "rows.csv: it is the input"),
    ):
        with pytest.raises(error, match=says):
            run(wrong, model)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["rows.csv", "rows.txt"]


def test_nothing_is_waited_for_for_ever(
    model: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.bulk.bulk.STARVED_SECONDS", 0.5)
    monkeypatch.setattr("jobs.bulk.bulk.REQUEST_SECONDS", 0.3)
    bulk = Bulk("doubling", write_rows(tmp_path / "rows.csv", 3), tmp_path / "out.ndjson")
    with seen(model, "doubling") as served:
        for record in served.ready():
            os.kill(record.pid, signal.SIGSTOP)
        try:
            with pytest.raises(ModelNotReady, match="nothing was answered for"):
                run(bulk, model)
        finally:
            for record in served.ready():
                os.kill(record.pid, signal.SIGCONT)

    monkeypatch.setattr("jobs.bulk.bulk.REQUEST_SECONDS", 60.0)
    assert run(bulk, model).done == 3


def test_a_version_that_is_replaced_ends_a_job_unless_it_is_to_follow(
    model: Settings, tmp_path: Path
) -> None:
    bulk = Bulk("doubling", write_rows(tmp_path / "rows.csv", 2000), tmp_path / "out.ndjson")
    config = Path(model.models) / "doubling" / "config.pbtxt"
    changes = iter(range(3, 9))

    with connect(model.redis_url) as redis:
        registry = Registry(redis, model.key_prefix)
        control = ModelControl(redis, model.key_prefix, "explicit")

        def replace_it(_: Progress) -> None:
            if (count := next(changes, 0)) in (3, 5):
                before = registry.model_keys()
                text = config.read_text()
                config.write_text(re.sub("count: .", f"count: {1 + count % 3}", text))
                control.load("doubling")
                wait_until(lambda: not before & registry.model_keys(), 60, "the old content left")

        with pytest.raises(ModelNotReady, match="--follow goes on"):
            predict(bulk, redis, model, replace_it)
        with pytest.raises(BadRequest, match="another revision"):
            predict(bulk, redis, model, replace_it)
        follows = bulk._replace(follow=True)
        assert predict(follows, redis, model, replace_it) == Progress(2000, 0, 2000)

    assert answers(bulk.output) == [doubled(number) for number in range(2000)]
