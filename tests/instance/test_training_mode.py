"""What training leaves in a graph is found at load; what only looks like it is not."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from fake_backend import FakeBackend, fake_spec
from loaded import load, spec, tensor
from onnx import TensorProto, helper
from torch import nn

from shared.model_spec import ModelSpec
from worker.backends.base import Backend
from worker.devices import Placement
from worker.instance.determinism import unsteadiness
from worker.instance.made_up import Guess, noise
from worker.instance.process import load_backend
from worker.instance.warmup import MadeUpPasses, warm_up
from worker.job import InstanceJob
from worker.meter import Meter
from worker.repository.models import read_model

DROPOUT = "differently when it is asked the same twice, as with dropout in training mode"
STATISTICS = "differently alone and in a batch, as with batch normalisation in training mode"
PICTURES = spec([tensor("x", "FP32", 3, 16, 16)], [tensor("y", "FP32", 10)])
VECTORS = spec([tensor("x", "FP32", 16)], [tensor("y", "FP32", 10)])


def conv(dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(3)
    layers: list[nn.Module] = []
    for channels in (3, 8):
        layers += [nn.Conv2d(channels, 8, 3), nn.BatchNorm2d(8), nn.ReLU()]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(8, 10)]
    return trained(nn.Sequential(*layers, nn.Softmax(1)), (3, 16, 16))


def dense() -> nn.Module:
    torch.manual_seed(3)
    layers = (nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))
    return trained(nn.Sequential(*layers), (16,))


def forgetful() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 10))


def trained(module: nn.Module, dims: tuple[int, ...]) -> nn.Module:
    """Let batch normalisation see some batches, so that its statistics are real."""
    module.train()
    for _ in range(10):
        module(torch.randn(8, *dims))
    return module


def traced(module: nn.Module, described: ModelSpec, directory: Path) -> tuple[str, Backend]:
    file = directory / "model.pt"
    trace: Any = torch.jit.trace
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trace(module, example(described), check_trace=False).save(str(file))
    return "torchscript", load("torchscript", described, file)


def exported(module: nn.Module, described: ModelSpec, directory: Path) -> tuple[str, Backend]:
    file = directory / "model.pt2"
    shapes = ({0: torch.export.Dim("batch")},)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(module, (example(described),), dynamic_shapes=shapes)
        torch.export.save(program, file)
    return "torch_export", load("torch_export", described, file)


def example(described: ModelSpec) -> torch.Tensor:
    return torch.ones(2, *described.inputs[0].dims)


def found(described: ModelSpec, backend_name: str, backend: Backend) -> str:
    """Warm the model up, look at it, and return what is wrong with it."""
    described = described.model_copy(update={"max_batch_size": min(4, described.max_batch_size)})
    pixels = frozenset({described.image.input} if described.image else ())
    passes = MadeUpPasses(described, backend, pixels, Meter())
    guess = warm_up(described, passes).guess
    assert guess is not None
    return unsteadiness(
        described, backend_name, passes, [lambda rows: noise(described, guess, rows)]
    )


FORMATS = pytest.mark.parametrize("save", [traced, exported])
Save = Callable[[nn.Module, ModelSpec, Path], tuple[str, Backend]]


@FORMATS
def test_dropout_in_training_mode_is_found(tmp_path: Path, save: Save) -> None:
    assert DROPOUT in found(VECTORS, *save(forgetful().train(), VECTORS, tmp_path))


@FORMATS
@pytest.mark.parametrize(("make", "described"), [(conv, PICTURES), (dense, VECTORS)])
def test_batch_statistics_are_found(
    tmp_path: Path, save: Save, make: Callable[[], nn.Module], described: ModelSpec
) -> None:
    made = save(deepcopy(make()).train(), described, tmp_path)

    assert STATISTICS in found(described, *made)


@FORMATS
@pytest.mark.parametrize(
    ("make", "described"), [(conv, PICTURES), (dense, VECTORS), (forgetful, VECTORS)]
)
def test_the_same_models_in_eval_mode_pass(
    tmp_path: Path, save: Save, make: Callable[[], nn.Module], described: ModelSpec
) -> None:
    assert found(described, *save(make().eval(), described, tmp_path)) == ""


@FORMATS
def test_a_model_that_is_meant_to_draw_lots_can_say_so(tmp_path: Path, save: Save) -> None:
    meant = VECTORS.model_copy(update={"parameters": {"allow_nondeterministic": "true"}})

    assert found(meant, *save(forgetful().train(), meant, tmp_path)) == ""


def test_an_onnx_graph_with_dropout_in_training_mode_is_found(tmp_path: Path) -> None:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 16]) for name in "xy"]
    ratio = helper.make_tensor("ratio", TensorProto.FLOAT, [], [0.5])
    training = helper.make_tensor("training", TensorProto.BOOL, [], [True])
    node = helper.make_node("Dropout", ["x", "ratio", "training"], ["y"], seed=1)
    graph = helper.make_graph([node], "g", ends[:1], ends[1:], [ratio, training])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "model.onnx")
    described = spec([tensor("x", "FP32", 16)], [tensor("y", "FP32", 16)])

    backend = load("onnxruntime", described, tmp_path / "model.onnx")

    assert DROPOUT in found(described, "onnxruntime", backend)


def test_a_dynamically_quantised_model_is_no_false_alarm(tmp_path: Path) -> None:
    torch.manual_seed(3)
    layers = [part for _ in range(4) for part in (nn.Linear(256, 256), nn.ReLU())]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        small: Any = torch.ao.quantization.quantize_dynamic(
            nn.Sequential(*layers).eval(), {nn.Linear}
        )
    described = spec([tensor("x", "FP32", 256)], [tensor("y", "FP32", 256)])

    assert found(described, *traced(small, described, tmp_path)) == ""


@pytest.mark.parametrize("name", ["tiny", "digits", "resnet18", "sentiment"])
def test_no_sample_model_is_a_false_alarm(sample_models: Path, name: str) -> None:
    model = read_model(sample_models, name)
    threads = torch.get_num_threads()
    job = InstanceJob(
        "i", model.spec, model.config.backend, model.file, Placement("cpu", threads),
        "redis://", "x", 1.0, "INFO",
    )  # fmt: skip

    assert found(model.spec, model.config.backend, load_backend(job)) == ""


class InPlace(nn.Module):
    """Writes into its input, as normalising `x.sub_(mean).div_(std)` does."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sub_(3.0).div_(0.5)


@FORMATS
def test_a_model_that_writes_into_its_input_is_no_false_alarm(tmp_path: Path, save: Save) -> None:
    described = spec([tensor("x", "FP32", 16)], [tensor("y", "FP32", 16)])

    assert found(described, *save(InPlace(), described, tmp_path)) == ""


def test_a_model_that_answers_in_one_buffer_is_seen_through() -> None:
    buffer = np.zeros((3, 2), np.float32)
    draws = iter(np.random.default_rng(1).normal(size=(100, 3, 2)))

    def answer(inputs: Any) -> Any:
        buffer[:] = next(draws)
        return {"y": buffer[: len(inputs["x"])]}

    assert DROPOUT in found(fake_spec(max_batch_size=3), "torchscript", FakeBackend(answer))


def test_a_model_without_batches_is_asked_twice_only() -> None:
    backend, described = FakeBackend(), fake_spec(max_batch_size=0)
    passes = MadeUpPasses(described, backend, frozenset(), Meter())
    unsteadiness(described, "torchscript", passes, [lambda rows: noise(described, Guess(()), rows)])

    assert [one["x"].shape for one in backend.passes] == [(2,), (2,)]


def test_a_model_that_refuses_the_rows_is_left_alone() -> None:
    def refuse(inputs: Any) -> Any:
        raise ValueError("no such word")

    described = fake_spec()
    passes = MadeUpPasses(described, FakeBackend(refuse), frozenset(), Meter())
    makes = [lambda rows: noise(described, Guess(()), rows)]

    assert unsteadiness(described, "torchscript", passes, makes) == ""


@pytest.mark.parametrize("backend", ["python", "joblib"])
def test_the_operator_s_own_code_is_not_judged(backend: str) -> None:
    draws = iter(np.random.default_rng(1).normal(size=(100, 32, 2)).astype(np.float32))

    def answer(inputs: Any) -> Any:
        return {"y": next(draws)[: len(inputs["x"])]}

    assert found(fake_spec(), backend, FakeBackend(answer)) == ""


def test_made_up_rows_are_seeded_and_fit_masks_and_vocabularies() -> None:
    described = spec([tensor("ids", "INT64", -1), tensor("mask", "BOOL", 4), tensor("x")], [])

    rows, again = (noise(described, Guess((16,)), 3) for _ in range(2))

    assert {name: array.shape for name, array in rows.items()} == {
        "ids": (3, 16),
        "mask": (3, 4),
        "x": (3, 2),
    }
    assert set(np.unique(rows["ids"])) == {0, 1}
    assert rows["mask"][:, 0].all()
    assert all((rows[name] == again[name]).all() for name in rows)
