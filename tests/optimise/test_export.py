"""`ferry export`: each format answers as the module does, or nothing is written."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import exported_models
import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save_file

from ferry.cli import main
from shared.settings import Settings
from worker.optimise.rows import Batch
from worker.optimise.subjects import Original, load_version, original_subject
from worker.repository.models import read_model

NEW_FORMATS = ("torchscript-trace", "torchscript-script", "exported", "onnx")


def export(models: Path, module: str, *options: str) -> int:
    original = module if ":" in module else f"exported_models:{module}"
    return main(["export", original, "--models", str(models), "--name", "m", *options])


def differences(models: Path, module: str, version: str, rows: int) -> float:
    model = read_model(models, "m", version)
    exported = load_version(model, Settings())
    original = original_subject(Original(f"exported_models:{module}"), model.spec)
    random = np.random.default_rng(rows)
    inputs = {
        tensor.name: random.integers(0, 9, (rows, 5))
        if tensor.datatype == "INT64"
        else random.normal(size=(rows, 4)).astype(np.float32)
        for tensor in model.spec.inputs
    }
    batch = Batch(inputs, frozenset(), rows)
    ours, theirs = original.answer(batch), exported.answer(batch)
    return max(float(np.abs(ours[name] - theirs[name]).max()) for name in ours)


def test_every_format_answers_as_the_module_at_any_batch(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert export(tmp_path, "Trained", "--input", "x:FP32:4", "--to", *NEW_FORMATS) == 0

    for version in "1234":
        for rows in (1, 2, 7, 32):
            assert differences(tmp_path, "Trained", version, rows) < 1e-5
    said = capfd.readouterr()
    assert "arning" not in said.out + said.err
    assert said.err == ""
    assert sorted(each.name for each in (tmp_path / "m" / "4").iterdir()) == [
        "export.json",
        "model.onnx",
    ]
    record = json.loads((tmp_path / "m" / "4" / "export.json").read_text())
    assert record["original"] == "exported_models:Trained"


def test_the_module_trains_on_as_it_did(tmp_path: Path) -> None:
    module = exported_models.instance
    before = {name: part.training for name, part in module.named_modules()}

    assert export(tmp_path, "instance", "--input", "x:4", "--to", "torchscript-trace") == 0

    assert {name: part.training for name, part in module.named_modules()} == before
    assert before["drop"]
    assert not before["norm"]


def test_names_of_inputs_and_outputs_and_the_opset(tmp_path: Path) -> None:
    options = ("--input", "a:4", "--input", "b:4", "--output", "sum", "--output", "dot")

    assert export(tmp_path, "TwoInputs", *options, "--to", "onnx", "--opset", "18") == 0

    model: Any = onnx.load(str(tmp_path / "m" / "1" / "model.onnx"))
    assert [each.name for each in model.graph.input] == ["a", "b"]
    assert [each.name for each in model.graph.output] == ["sum", "dot"]
    shape = model.graph.input[0].type.tensor_type.shape
    assert [shape.dim[0].dim_param, shape.dim[1].dim_value] == ["batch", 4]
    assert model.opset_import[0].version == 18
    assert read_model(tmp_path, "m").spec.outputs[1].name == "dot"


def test_outputs_that_the_model_names_itself_keep_their_names(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert export(tmp_path, "Named", "--input", "x:4", "--to", *NEW_FORMATS[:1], "onnx") == 0
    assert [each.name for each in read_model(tmp_path, "m").spec.outputs] == ["sum", "score"]
    for version in "12":
        assert differences(tmp_path, "Named", version, 3) < 1e-5

    assert export(tmp_path / "b", "Named", "--input", "x:4", "--to", "onnx", "--output", "a",
                  "--output", "b") == 1  # fmt: skip
    assert "names its outputs sum, score itself" in capfd.readouterr().err


def test_rows_of_any_length_in_each_format(tmp_path: Path) -> None:
    assert export(tmp_path, "Words", "--input", "ids:-1:INT64", "--to", *NEW_FORMATS) == 0
    for version in "1234":
        model = load_version(read_model(tmp_path, "m", version), Settings())
        for length in (1, 3, 40):
            batch = Batch({"ids": np.ones((2, length), np.int64)}, frozenset(), 2)
            assert model.answer(batch)["output"].shape == (2, 2)


def test_weights_and_arguments(tmp_path: Path) -> None:
    state = exported_models.Trained(5).state_dict()
    ones = {name: torch.ones_like(each) for name, each in state.items()}
    save_file(ones, tmp_path / "w.safetensors")
    options = ("--input", "x:4", "--arguments", '{"width": 5}', "--to", "exported")

    assert (
        export(
            tmp_path / "models", "Trained", *options, "--weights", str(tmp_path / "w.safetensors")
        )
        == 0
    )

    model = load_version(read_model(tmp_path / "models", "m"), Settings())
    answer = model.answer(Batch({"x": np.ones((1, 4), np.float32)}, frozenset(), 1))["output"]
    assert answer.shape == (1, 5)
    assert answer == pytest.approx(5.0, abs=1e-3)  # (4 + 1 - 1) / sqrt(1 + eps) * 1 + 1


def test_a_decision_is_followed_by_a_script(tmp_path: Path) -> None:
    options = ("--input", "x:4", "--to", "torchscript-script", "--max-batch-size", "1")

    assert export(tmp_path, "Scriptable", *options) == 0


@pytest.mark.parametrize(
    ("module", "to", "said"),
    [
        ("Decides", "torchscript-trace", r"\(exported_models\.py:\d+\).* --to torchscript-script"),
        ("Decides", "exported", "decides by the values of its data"),
        ("Decides", "onnx", "decides by the values of its data"),
        ("DecidesByRow", "torchscript-trace", "--to torchscript-script"),
        ("OneBatch", "torchscript-trace", "--to torchscript-script"),
        ("OneBatch", "exported", "instead of going through its rows"),
        ("NeverSteady", "exported", "two passes .* differ"),
        ("Counts", "exported", "a pass changes its 'calls'"),
        ("OverTheBatch", "exported", "answered otherwise alone"),
        ("StaysInTraining", "exported", "leaves .* in training mode"),
        ("NoTensor", "exported", "OUTPUT__1' is a NoneType"),
        ("NoBatch", "exported", r"the shape \[3\] for \d rows"),
        ("raises", "exported", "raised ValueError: no such file: weights"),
        ("nothing", "exported", "has no 'nothing'"),
        ("no_such_module:f", "exported", "No module named 'no_such_module'"),
        ("exported_models", "exported", "expected package.module:callable"),
        ("pathlib:Path", "exported", "no torch module"),
    ],
)  # fmt: skip
def test_what_cannot_be_exported_is_one_sentence_and_writes_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], module: str, to: str, said: str
) -> None:
    if module == "exported_models":
        module = "exported_models:"
    code = export(tmp_path, module, "--input", "x:4", "--to", to)

    error = capfd.readouterr().err
    assert code == 1
    assert re.search(said, error), error
    assert error.count("\n") == 1
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--to", "exported"], "--input"),
        (["--input", "x:4"], "--to"),
        (["--input", "x:4", "--to", "tensorrt"], "--to tensorrt: expected one or several of"),
        (["--input", "x:4", "--to", "exported", "--opset", "18"], "--opset"),
        (["--input", "x:4", "--to", "onnx", "--opset", "3"], "--opset 3"),
        (["--input", "x:5", "--to", "exported"], "x .*5.* FP32: .*--input"),
        (["--input", "x:zz", "--to", "exported"], "--input 'x:zz'"),
        (["--input", "x:4", "--input", "z:4", "--to", "exported"], "forward takes"),
        (["--input", "text", "--to", "exported"], "--tokenizer"),
        (["--input", "x:4", "--to", "exported", "--arguments", "{"], "--arguments"),
        (["--input", "x:4", "--to", "exported", "--arguments", '{"z": 1}'], "'z'"),
        (["--input", "x:4", "--to", "exported", "--weights", "gone.pt"], "gone.pt: no such file"),
        (["--input", "x:4", "--to", "exported", "--output", "a", "--output", "b"], "--output"),
        (["--input", "x:4", "--to", "exported", "--output", "a:3"], "a name alone"),
        (["--input", "x:4", "--to", "exported", "--labels", "gone.txt"], "gone.txt: no such file"),
        (["--input", "x:4", "--to", "exported", "--max-batch-size", "0"], "--max-batch-size 0"),
        (["--input", "x:4", "--to", "exported", "onnx", "--opset", "99"], "--to onnx"),
        (["--input", "x:4", "--to", "exported", "exported"], "--to exported was given twice"),
        (["--input", "x:4", "--to", "exported", "--weights", "{here}/text"], "text: expected a"),
        (["--input", "x:4", "--to", "exported", "--weights", "{here}/empty"], "empty: expected"),
        (["--input", "x:4", "--to", "exported", "--labels", "{here}/text"], "1 names, .* has 3"),
        (["--input", "x:4", "--to", "exported", "--models", "{here}/text"], "text: not written: "),
        (["--input", "x:4", "--to", "exported", "--models", "{here}/text/m"], "m: not written: "),
    ],
)  # fmt: skip
def test_a_wrong_option_is_named_and_writes_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    (tmp_path / "text").write_text("hello")
    (tmp_path / "empty").write_bytes(b"")
    options = [each.format(here=tmp_path) if "here" in each else each for each in options]

    assert export(tmp_path / "models", "Trained", *options) == 1

    error = capfd.readouterr().err
    assert re.search(said, error), error
    assert error.count("\n") == 1
    left = sorted(str(each.relative_to(tmp_path)) for each in tmp_path.rglob("*"))
    assert [each for each in left if each != "models"] == ["empty", "text"]


@pytest.mark.parametrize(
    ("module", "options", "said"),
    [
        ("Named", [], "the outputs are sum, score, but there is 'output'"),
        ("Trained", ["--max-batch-size", "7"], "--max-batch-size 7, but it is 32"),
        ("Trained", ["--labels", "{here}/names"], "names, but it has none in the model that"),
        ("Trained", ["--arguments", '{"width": 5}'], r"dims \[5\], but it is \[3\]"),
        ("TwoInputs", ["--input", "y:4"], "--input y:4:FP32, but it is x:4:FP32"),
        ("TakesMedian", ["--to", "onnx"], "no operator for aten.median: .* as --to exported"),
    ],
)
def test_a_model_that_is_there_takes_only_what_fits_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], module: str, options: list[str], said: str
) -> None:
    (tmp_path / "names").write_text("a\nb\nc\n")
    first = ("--input", "x:4", "--to", "torchscript-trace")
    assert export(tmp_path / "models", "Trained", *first) == 0
    before = {each: each.stat().st_mtime_ns for each in (tmp_path / "models").rglob("*")}
    capfd.readouterr()

    given = [each.replace("{here}", str(tmp_path)) for each in options]
    assert (
        export(tmp_path / "models", module, *first[: 4 if "--to" not in given else 2], *given) == 1
    )

    error = capfd.readouterr().err
    assert re.search(said, error), error
    assert error.count("\n") == 1
    after = {each: each.stat().st_mtime_ns for each in (tmp_path / "models").rglob("*")}
    assert after == before


@pytest.mark.parametrize("original", ["gone.joblib", "text", "exported_models.py"])
def test_what_is_no_callable_and_no_pipeline_is_said(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], original: str
) -> None:
    assert main(["export", original, "--to", "onnx", "--models", str(tmp_path), "--name", "m"]) == 1

    assert (
        f"'{original}': expected package.module:callable, or the joblib" in capfd.readouterr().err
    )
