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

from shared.errors import BadModel
from shared.model_spec import ModelSpec
from worker.backends.base import Backend
from worker.devices import Placement
from worker.instance.determinism import check_deterministic, made_up_rows
from worker.instance.process import load_backend
from worker.job import InstanceJob
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


FORMATS = pytest.mark.parametrize("save", [traced, exported])
Save = Callable[[nn.Module, ModelSpec, Path], tuple[str, Backend]]


@FORMATS
def test_dropout_in_training_mode_is_found(tmp_path: Path, save: Save) -> None:
    with pytest.raises(BadModel, match=DROPOUT):
        check_deterministic(VECTORS, *save(forgetful().train(), VECTORS, tmp_path))


@FORMATS
@pytest.mark.parametrize(("make", "described"), [(conv, PICTURES), (dense, VECTORS)])
def test_batch_statistics_are_found(
    tmp_path: Path, save: Save, make: Callable[[], nn.Module], described: ModelSpec
) -> None:
    with pytest.raises(BadModel, match=STATISTICS):
        check_deterministic(described, *save(deepcopy(make()).train(), described, tmp_path))


@FORMATS
@pytest.mark.parametrize(
    ("make", "described"), [(conv, PICTURES), (dense, VECTORS), (forgetful, VECTORS)]
)
def test_the_same_models_in_eval_mode_pass(
    tmp_path: Path, save: Save, make: Callable[[], nn.Module], described: ModelSpec
) -> None:
    check_deterministic(described, *save(make().eval(), described, tmp_path))


@FORMATS
def test_a_model_that_is_meant_to_draw_lots_can_say_so(tmp_path: Path, save: Save) -> None:
    meant = VECTORS.model_copy(update={"parameters": {"allow_nondeterministic": "true"}})

    check_deterministic(meant, *save(forgetful().train(), meant, tmp_path))


def test_an_onnx_graph_with_dropout_in_training_mode_is_found(tmp_path: Path) -> None:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 16]) for name in "xy"]
    ratio = helper.make_tensor("ratio", TensorProto.FLOAT, [], [0.5])
    training = helper.make_tensor("training", TensorProto.BOOL, [], [True])
    node = helper.make_node("Dropout", ["x", "ratio", "training"], ["y"], seed=1)
    graph = helper.make_graph([node], "g", ends[:1], ends[1:], [ratio, training])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "model.onnx")
    described = spec([tensor("x", "FP32", 16)], [tensor("y", "FP32", 16)])

    with pytest.raises(BadModel, match=DROPOUT):
        backend = load("onnxruntime", described, tmp_path / "model.onnx")
        check_deterministic(described, "onnxruntime", backend)


def test_a_dynamically_quantised_model_is_no_false_alarm(tmp_path: Path) -> None:
    torch.manual_seed(3)
    layers = [part for _ in range(4) for part in (nn.Linear(256, 256), nn.ReLU())]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        small: Any = torch.ao.quantization.quantize_dynamic(
            nn.Sequential(*layers).eval(), {nn.Linear}
        )
    described = spec([tensor("x", "FP32", 256)], [tensor("y", "FP32", 256)])

    check_deterministic(described, *traced(small, described, tmp_path))


@pytest.mark.parametrize("name", ["tiny", "digits", "resnet18", "sentiment"])
def test_no_sample_model_is_a_false_alarm(sample_models: Path, name: str) -> None:
    model = read_model(sample_models, name)
    threads = torch.get_num_threads()
    job = InstanceJob(
        "i", model.spec, model.config.backend, model.file, Placement("cpu", threads),
        "redis://", "x", 1.0, "INFO",
    )  # fmt: skip

    check_deterministic(model.spec, model.config.backend, load_backend(job))


def test_a_model_without_batches_is_asked_twice_only() -> None:
    backend = FakeBackend()
    check_deterministic(fake_spec(max_batch_size=0), "torchscript", backend)

    assert [one["x"].shape for one in backend.passes] == [(2,), (2,)]


def test_a_model_that_refuses_what_is_made_up_is_left_alone() -> None:
    def refuse(inputs: Any) -> Any:
        raise ValueError("no such word")

    check_deterministic(fake_spec(), "torchscript", FakeBackend(refuse))


@pytest.mark.parametrize("backend", ["python", "joblib"])
def test_the_operator_s_own_code_is_not_judged(backend: str) -> None:
    asked = FakeBackend()
    check_deterministic(fake_spec(), backend, asked)

    assert asked.passes == []


def test_made_up_rows_are_seeded_and_fit_masks_and_vocabularies() -> None:
    described = spec([tensor("ids", "INT64", -1), tensor("mask", "BOOL", 4), tensor("x")], [])

    rows, again = made_up_rows(described, 3), made_up_rows(described, 3)

    assert {name: array.shape for name, array in rows.items()} == {
        "ids": (3, 16),
        "mask": (3, 4),
        "x": (3, 2),
    }
    assert set(np.unique(rows["ids"])) == {0, 1}
    assert rows["mask"][:, 0].all()
    assert all((rows[name] == again[name]).all() for name in rows)
