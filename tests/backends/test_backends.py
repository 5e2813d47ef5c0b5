"""The real frameworks: tensors find their places, and a batch is as good as its rows alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from scripted_models import save_scripted

from shared.datatypes import Array
from shared.errors import BadModel, BadModelOutput
from shared.model_spec import ModelSpec, TensorSpec
from worker.backends.base import Backend
from worker.backends.onnxruntime import OnnxRuntimeBackend
from worker.backends.torch_compiled import TorchScriptBackend
from worker.devices import Placement
from worker.instance.process import load_backend, warm_backend
from worker.job import InstanceJob
from worker.meter import Meter
from worker.repository.model_config import read_config
from worker.repository.models import read_model

PLAIN: frozenset[str] = frozenset()
ONES = np.ones((1, 2), np.float32)
TWOS = np.full((1, 2), 2, np.float32)


class Difference(torch.nn.Module):
    def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return first - second


class SumAndDifference(torch.nn.Module):
    def forward(
        self, first: torch.Tensor, second: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return first + second, first - second


class Named(torch.nn.Module):
    def forward(self, first: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"other": first, "twice": first * 2, "thrice": first * 3}


class InPlace(torch.nn.Module):
    def forward(self, first: torch.Tensor) -> torch.Tensor:
        first.mul_(2)
        return first


def spec(inputs: list[str], outputs: list[str]) -> ModelSpec:
    return ModelSpec(
        name="m",
        version="1",
        platform="pytorch_libtorch",
        max_batch_size=8,
        inputs=tuple(TensorSpec(name=name, datatype="FP32", dims=(2,)) for name in inputs),
        outputs=tuple(TensorSpec(name=name, datatype="FP32", dims=(2,)) for name in outputs),
    )


def scripted(
    module: torch.nn.Module, directory: Path, inputs: list[str], outputs: list[str]
) -> TorchScriptBackend:
    save_scripted(module, directory / "model.pt")
    return TorchScriptBackend(spec(inputs, outputs), directory / "model.pt", "cpu")


def test_torchscript_inputs_go_by_argument_name(tmp_path: Path) -> None:
    backend = scripted(Difference(), tmp_path, ["second", "first"], ["y"])

    outputs = backend.forward({"second": ONES, "first": TWOS}, PLAIN)

    assert outputs["y"].tolist() == [[1.0, 1.0]]


def test_torchscript_names_with_an_index_go_by_it(tmp_path: Path) -> None:
    backend = scripted(SumAndDifference(), tmp_path, ["IN__1", "IN__0"], ["OUTPUT__1", "OUTPUT__0"])

    outputs = backend.forward({"IN__1": ONES, "IN__0": TWOS}, PLAIN)

    assert outputs["OUTPUT__0"].tolist() == [[3.0, 3.0]]
    assert outputs["OUTPUT__1"].tolist() == [[1.0, 1.0]]


def test_torchscript_indices_are_numbers_not_text(tmp_path: Path) -> None:
    backend = scripted(Difference(), tmp_path, ["IN__10", "IN__9"], ["y"])

    assert backend.forward({"IN__10": ONES, "IN__9": TWOS}, PLAIN)["y"].tolist() == [[1.0, 1.0]]


def test_other_torchscript_names_go_in_the_order_of_the_config(tmp_path: Path) -> None:
    backend = scripted(SumAndDifference(), tmp_path, ["b", "a"], ["sum", "difference"])

    outputs = backend.forward({"a": ONES, "b": TWOS}, PLAIN)

    assert {name: array.tolist() for name, array in outputs.items()} == {
        "sum": [[3.0, 3.0]],
        "difference": [[1.0, 1.0]],
    }


def test_torchscript_outputs_in_a_dictionary_go_by_name(tmp_path: Path) -> None:
    backend = scripted(Named(), tmp_path, ["first"], ["thrice", "twice"])

    outputs = backend.forward({"first": ONES}, PLAIN)

    assert outputs["twice"].tolist() == [[2.0, 2.0]]
    assert outputs["thrice"].tolist() == [[3.0, 3.0]]


def test_fewer_torchscript_outputs_than_declared_are_an_error(tmp_path: Path) -> None:
    backend = scripted(Difference(), tmp_path, ["first", "second"], ["y", "z"])

    with pytest.raises(BadModelOutput, match=r"returned 1 tensors, its config declares \['y', 'z'"):
        backend.forward({"first": ONES, "second": TWOS}, PLAIN)


def test_a_model_that_writes_into_its_input_does_not_touch_the_request(tmp_path: Path) -> None:
    backend = scripted(InPlace(), tmp_path, ["first"], ["y"])
    message = ONES.tobytes()

    outputs = backend.forward({"first": np.frombuffer(message, np.float32).reshape(1, 2)}, PLAIN)

    assert outputs["y"].tolist() == [[2.0, 2.0]]
    assert message == ONES.tobytes()


def test_a_file_that_is_no_torchscript_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"nothing")

    with pytest.raises(RuntimeError):
        TorchScriptBackend(spec(["x"], ["y"]), tmp_path / "model.pt", "cpu")


@pytest.fixture
def onnx_file(tmp_path: Path) -> Path:
    """y = a - b, z = a + b, rows of two, any number of rows."""
    shapes = {
        name: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", 2]) for name in "abyz"
    }
    graph = helper.make_graph(
        [helper.make_node("Sub", ["a", "b"], ["y"]), helper.make_node("Add", ["a", "b"], ["z"])],
        "graph",
        [shapes["a"], shapes["b"]],
        [shapes["y"], shapes["z"]],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.save(model, tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def test_onnx_tensors_go_by_name(onnx_file: Path) -> None:
    backend = OnnxRuntimeBackend(spec(["b", "a"], ["z", "y"]), onnx_file, Placement("cpu"))

    outputs = backend.forward({"b": ONES, "a": TWOS}, PLAIN)

    assert outputs["y"].tolist() == [[1.0, 1.0]]
    assert outputs["z"].tolist() == [[3.0, 3.0]]


def test_an_onnx_file_with_other_inputs_than_declared_is_refused(onnx_file: Path) -> None:
    with pytest.raises(BadModel, match=r"the file has the inputs \['a', 'b"):
        OnnxRuntimeBackend(spec(["a", "x"], ["y"]), onnx_file, Placement("cpu"))


@pytest.fixture(params=["tiny", "digits", "resnet18", "resnet18 as ONNX"])
def real(request: pytest.FixtureRequest, sample_models: Path) -> tuple[ModelSpec, Backend]:
    """A sample model, loaded as an instance loads it."""
    name, _, as_onnx = request.param.partition(" ")
    model = read_model(sample_models, name)
    backend = "onnxruntime" if as_onnx else model.config.backend
    file = model.file.with_suffix(".onnx") if as_onnx else model.file
    return model.spec, load_backend(job(model.spec, backend, file))


def job(spec: ModelSpec, backend: str, file: Path, threads: int = 1) -> InstanceJob:
    return InstanceJob(
        "i", spec, backend, file, Placement("cpu", threads), "redis://", "x", 1.0, "INFO"
    )  # fmt: skip


@pytest.fixture(autouse=True)
def threads_of_this_process() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_a_batch_equals_its_rows_one_by_one(real: tuple[ModelSpec, Backend]) -> None:
    spec, backend = real
    inputs, pixels = some_rows(spec, 5)
    (output,) = [tensor.name for tensor in spec.outputs]

    together = backend.forward(inputs, pixels)[output]
    alone = [
        backend.forward({name: array[i : i + 1] for name, array in inputs.items()}, pixels)[output]
        for i in range(5)
    ]

    np.testing.assert_allclose(together, np.concatenate(alone), atol=1e-5, rtol=1e-4)
    assert np.ptp(together, axis=0).max() > 1e-3, "the rows differ"


def test_a_torchscript_and_an_onnx_export_agree(sample_models: Path) -> None:
    model = read_model(sample_models, "resnet18")
    inputs, pixels = some_rows(model.spec, 2)

    script, session = (
        load_backend(job(model.spec, backend, model.file.with_suffix(suffix)))
        for backend, suffix in (("torchscript", ".pt"), ("onnxruntime", ".onnx"))
    )

    np.testing.assert_allclose(
        script.forward(inputs, pixels)["output"],
        session.forward(inputs, pixels)["output"],
        atol=1e-3,
    )


def test_pictures_are_normalised_as_the_config_says(sample_models: Path, tmp_path: Path) -> None:
    save_scripted(torch.nn.Identity(), tmp_path / "model.pt")
    spec = read_config(sample_models / "resnet18" / "config.pbtxt", "1").spec
    backend = TorchScriptBackend(spec, tmp_path / "model.pt", "cpu")
    inputs, pixels = some_rows(spec, 2)

    (normalised,) = backend.forward(inputs, pixels).values()

    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    expected = ((inputs["input"] / 255 - mean) / std).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(normalised, expected, atol=1e-5)


def test_a_real_model_for_pictures_survives_its_warm_up(sample_models: Path) -> None:
    model = read_model(sample_models, "digits")

    assert warm_backend(job(model.spec, "torchscript", model.file), Meter()).note == ""


def test_an_instance_takes_the_threads_it_was_given(sample_models: Path) -> None:
    model = read_model(sample_models, "tiny")

    load_backend(job(model.spec, "torchscript", model.file, threads=3))

    assert torch.get_num_threads() == 3


def some_rows(spec: ModelSpec, rows: int) -> tuple[dict[str, Array], frozenset[str]]:
    """Return seeded random rows for a model with one input, pictures as pixels."""
    random = np.random.default_rng(7)
    if spec.image is None:
        (tensor,) = spec.inputs
        return {tensor.name: random.normal(size=(rows, *tensor.dims)).astype(np.float32)}, PLAIN
    size = (rows, spec.image.height, spec.image.width, len(spec.image.channels))
    pixels = random.integers(0, 256, size).astype(np.uint8)
    return {spec.image.input: pixels}, frozenset({spec.image.input})
