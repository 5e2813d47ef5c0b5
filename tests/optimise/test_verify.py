"""`ferry verify`: a verdict with reasons, an exit code, and a record for the very bytes."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from ferry.cli import main
from shared.errors import BadModel
from shared.registry.desired_state import Desired
from shared.settings import Settings
from worker.devices import Placement
from worker.instance.process import load_backend
from worker.job import InstanceJob
from worker.repository.models import read_model
from worker.repository.verified import why_unverified
from worker.supervisor.planner import Planner

ORIGINAL = "exported_models:instance"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with `m`: an ONNX file, and an exported program."""
    models = tmp_path_factory.mktemp("verified")
    labels = models.parent / f"{models.name}.txt"
    labels.write_text("a\nb\nc\n")
    options = ["--input", "x:4", "--to", "onnx", "exported", "--labels", str(labels)]
    assert main(["export", ORIGINAL, "--models", str(models), "--name", "m", *options]) == 0
    return models


@pytest.fixture
def models(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "models"))


def verify(models: Path, *options: str) -> int:
    return main(["verify", "m", "--models", str(models), *options])


def record(models: Path, version: str = "2") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((models / "m" / version / "verify.json").read_bytes())
    return found


def change_weights(models: Path) -> None:
    file = models / "m" / "1" / "model.onnx"
    model: Any = onnx.load(str(file))
    for each in model.graph.initializer:
        array = numpy_helper.to_array(each)
        if array.ndim == 2:
            each.CopyFrom(numpy_helper.from_array(array + np.float32(0.05), each.name))
    onnx.save(model, str(file))


def rows(tmp_path: Path) -> Path:
    random = np.random.default_rng(1)
    x = random.normal(size=(50, 4)).astype(np.float32)
    np.savez(tmp_path / "rows.npz", x=x, label=random.integers(0, 3, 50))
    return tmp_path / "rows.npz"


def test_a_version_passes_against_its_original_with_real_rows(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify(models, "--data", str(rows(tmp_path))) == 0

    found = record(models)
    assert found["verdict"] == "pass"
    assert found["against"] == ORIGINAL
    assert found["batches"] == [1, 2, 7, 32]
    agreement = found["data"]["agreement"]
    assert (agreement["top1"], agreement["rows"], agreement["labelled_rows"]) == (1.0, 50, 50)
    assert agreement["reference_accuracy"] == agreement["candidate_accuracy"]
    assert found["reference"]["prediction"]["rows"] == 50
    assert sum(found["reference"]["confidence"]["counts"]) == 50
    assert {"mean", "entropy"} < found["reference"].keys()
    assert "verdict: pass" in capsys.readouterr().out


@pytest.mark.parametrize("against", ["2", ORIGINAL])
def test_another_answer_fails_with_a_reason_and_an_exit_code(
    models: Path, against: str, capsys: pytest.CaptureFixture[str]
) -> None:
    change_weights(models)

    assert verify(models, "--version", "1", "--against", against) == 1

    assert record(models, "1")["verdict"] == "fail"
    assert re.search(
        r"relative difference 0\.\d+, expected at most 0\.001", capsys.readouterr().out
    )
    assert verify(models, "--version", "1", "--max-relative", "9", "--min-cosine", "0") == 0
    assert record(models, "1")["tolerances"]["max_relative"] == 9


def test_only_the_very_bytes_that_were_verified_are_served(models: Path) -> None:
    with (models / "m" / "config.pbtxt").open("a") as config:
        config.write("version_policy { all { } }\n")
    settings = Settings(models=str(models), require_verified=True)
    assert verify(models, "--version", "1") == 0

    plan = Planner(settings).plan("m", Desired())

    assert [*plan.versions] == ["1"], plan.failures
    assert "m/2/verify.json is missing: `ferry verify m --version 2`" in plan.failures["2"]
    change_weights(models)
    changed = Planner(settings).plan("m", Desired())
    assert not changed.versions
    assert "model.onnx is not what" in changed.failures["1"]
    open_to_all = Planner(replace(settings, require_verified=False)).plan("m", Desired())
    assert not open_to_all.failures


def test_an_instance_looks_again_at_the_bytes_that_it_loads(models: Path) -> None:
    assert verify(models, "--version", "1") == 0
    model = read_model(models, "m", "1")
    job = InstanceJob(
        "i", model.spec, model.config.backend, model.file, Placement("cpu"), "", "", 1.0, "INFO",
        require_verified=True,
    )  # fmt: skip
    assert load_backend(job) is not None

    change_weights(models)

    with pytest.raises(BadModel, match=r"model\.onnx is not what"):
        load_backend(job)
    assert load_backend(replace(job, require_verified=False)) is not None


def test_what_a_config_means_is_verified_and_how_it_is_run_is_not(models: Path) -> None:
    assert verify(models) == 0
    config = models / "m" / "config.pbtxt"
    before = config.read_text()

    config.write_text(before + "instance_group [ { count: 2 } ]\n")
    model = read_model(models, "m")
    assert why_unverified(model.spec, model.file.parent) == ""

    config.write_text(before.replace("max_batch_size: 32", "max_batch_size: 64"))
    model = read_model(models, "m")
    assert "config.pbtxt is not what" in why_unverified(model.spec, model.file.parent)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b'{"verdict": "pass"}', b'{"verdict": "pass", "digests": 3}', b"\xff"]
)
def test_a_damaged_record_is_none(models: Path, content: bytes) -> None:
    model = read_model(models, "m")
    (model.file.parent / "verify.json").write_bytes(content)

    assert "cannot be read" in why_unverified(model.spec, model.file.parent)


def test_a_record_does_not_make_a_version_another(models: Path) -> None:
    planner = Planner(Settings(models=str(models)))
    before = planner.plan("m", Desired()).versions["2"].content
    assert verify(models) == 0

    assert planner.plan("m", Desired()).versions["2"].content == before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--version", "9"], "no version 9"),
        (["--against", "9"], "no version 9"),
        (["--against", "nowhere"], "expected package.module:callable"),
        (["--against", "exported_models:TwoInputs"], "forward takes"),
        (["--data", "gone.csv"], "gone.csv: no such file"),
        (["--label", "y"], "--label names a column of --data, which was not given"),
        (["--against", "1", "--weights", "w.pt"], "--weights is of a callable"),
        (["--arguments", "[]"], "--arguments is of a callable"),
        (["--precision", "INT4"], "--precision INT4: expected one of FP32"),
    ],
)
def test_a_wrong_option_is_a_sentence_and_writes_no_record(
    models: Path, options: list[str], said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert verify(models, *options) == 1

    error = capfd.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (models / "m" / "2" / "verify.json").exists()


def test_a_reference_alone_is_no_verdict_and_leaves_one_as_it_is(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--data", str(rows(tmp_path)), "--only-reference"]
    assert verify(models, "--version", "1", *data) == 0
    assert "m/1: reference of 50 rows of" in capsys.readouterr().out
    first = read_model(models, "m", "1")
    assert "says 'unproven'" in why_unverified(first.spec, first.file.parent)

    assert verify(models, "--version", "1") == 0
    assert verify(models, "--version", "1", *data) == 0
    found = record(models, "1")
    assert found["verdict"] == "pass" and found["reference"]["mean"]["rows"] == 50
    assert not why_unverified(first.spec, first.file.parent)
    assert first.reference() is not None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--only-reference"], "--only-reference is made of rows, name them by --data"),
        (["--only-reference", "--data", "x.npz", "--against", "1"], "compares with nothing"),
    ],
)
def test_a_reference_of_nothing_is_refused(
    models: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    assert verify(models, *options) == 1
    assert said in capsys.readouterr().err
