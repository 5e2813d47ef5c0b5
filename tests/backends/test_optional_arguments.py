"""Inputs that may be absent: torch gets None or its default, ONNX Runtime its own default."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from loaded import PLAIN, floats, load, session_of, spec, tensor
from onnx import TensorProto, helper
from scripted_models import save_scripted

from shared.errors import BadModel
from worker.backends import onnxruntime
from worker.backends.base import Backend
from worker.devices import Placement

X, Y = tensor("x"), tensor("y")
ONES, TWOS = floats([1, 1]), floats([2, 2])


class Shifted(torch.nn.Module):
    """Adds what is there; `times` has a default, `shift` may be None."""

    def forward(
        self, x: torch.Tensor, shift: torch.Tensor | None, times: float = 3.0
    ) -> torch.Tensor:
        return x * times if shift is None else x * times + shift


class Plain(torch.nn.Module):
    def forward(self, x: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        return x + shift


def scripted(tmp_path: Path, module: torch.nn.Module, *names: str, optional: str = "") -> Backend:
    save_scripted(module, tmp_path / "model.pt")
    inputs = [tensor(name, optional=name == optional) for name in names]
    return load("torchscript", spec(inputs, [Y]), tmp_path / "model.pt")


@pytest.mark.parametrize(("x", "shift"), [("x", "shift"), ("IN__0", "IN__1"), ("a", "b")])
def test_an_absent_torchscript_input_is_none_and_a_default_stays(
    tmp_path: Path, x: str, shift: str
) -> None:
    backend = scripted(tmp_path, Shifted(), x, shift, optional=shift)

    assert backend.forward({x: ONES, shift: TWOS}, PLAIN)["y"].tolist() == [[5.0, 5.0]]
    assert backend.forward({x: ONES}, PLAIN)["y"].tolist() == [[3.0, 3.0]]


def test_a_torchscript_argument_without_none_or_default_is_not_optional(tmp_path: Path) -> None:
    with pytest.raises(BadModel, match="input 'shift' is optional, but forward's argument 'shift'"):
        scripted(tmp_path, Plain(), "x", "shift", optional="shift")


def test_torchscript_arguments_and_declared_inputs_must_match_in_number(tmp_path: Path) -> None:
    with pytest.raises(
        BadModel, match=r"forward takes \['x', 'shift'\], .* no input for \['shift'\]"
    ):
        scripted(tmp_path, Plain(), "x")
    with pytest.raises(BadModel, match=r"the config declares the inputs \['a', 'b', 'c'\]"):
        scripted(tmp_path, Plain(), "a", "b", "c")


@pytest.fixture
def onnx_file(tmp_path: Path) -> Path:
    """y = x + shift, where shift is a constant unless it is given."""
    ends = {
        name: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", 2]) for name in "xy"
    }
    shift = helper.make_tensor_value_info("shift", TensorProto.FLOAT, [1, 2])
    default = helper.make_tensor("shift", TensorProto.FLOAT, [1, 2], [10.0, 10.0])
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "shift"], ["y"])],
        "graph",
        [ends["x"], shift],
        [ends["y"]],
        [default],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.save(model, tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def test_an_onnx_input_with_a_default_may_be_absent(onnx_file: Path) -> None:
    backend = load("onnxruntime", spec([X, tensor("shift", optional=True)], [Y]), onnx_file)

    assert backend.forward({"x": ONES, "shift": TWOS}, PLAIN)["y"].tolist() == [[3.0, 3.0]]
    assert backend.forward({"x": ONES}, PLAIN)["y"].tolist() == [[11.0, 11.0]]


def test_an_onnx_input_with_a_default_need_not_be_declared(onnx_file: Path) -> None:
    backend = load("onnxruntime", spec([X], [Y]), onnx_file)

    assert backend.forward({"x": ONES}, PLAIN)["y"].tolist() == [[11.0, 11.0]]


def test_an_onnx_input_without_a_default_is_not_optional(onnx_file: Path) -> None:
    with pytest.raises(BadModel, match="input 'x' is optional in the config, but not in the file"):
        load("onnxruntime", spec([tensor("x", optional=True)], [Y]), onnx_file)


def test_an_onnx_file_without_a_declared_output_is_refused(onnx_file: Path) -> None:
    with pytest.raises(BadModel, match=r"has the outputs \['y'\], the config \['z'\]"):
        load("onnxruntime", spec([X], [tensor("z")]), onnx_file)


def test_the_whole_graph_is_optimised_and_takes_the_threads_it_was_given(onnx_file: Path) -> None:
    backend = onnxruntime.OnnxRuntimeBackend(spec([X], [Y]), onnx_file, Placement("cpu", 3))

    options = session_of(backend).get_session_options()

    assert options.intra_op_num_threads == 3
    assert options.graph_optimization_level.name == "ORT_ENABLE_ALL"


@pytest.mark.parametrize(
    ("level", "name"),
    [(-1, "ORT_ENABLE_BASIC"), (0, "ORT_ENABLE_ALL"), (1, "ORT_ENABLE_EXTENDED"),
     (2, "ORT_DISABLE_ALL")],
)  # fmt: skip
def test_the_config_s_level_of_optimisation_is_taken(
    onnx_file: Path, level: int, name: str
) -> None:
    config = {"optimization": {"graph": {"level": level}}}
    described = spec([X], [Y]).model_copy(update={"config": config})

    backend = onnxruntime.OnnxRuntimeBackend(described, onnx_file, Placement("cpu"))

    options = session_of(backend).get_session_options()
    assert options.graph_optimization_level.name == name


@pytest.mark.parametrize("kind", ["KIND_GPU", "KIND_AUTO"])
def test_without_its_provider_a_gpu_that_was_asked_for_is_an_error(
    onnx_file: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_cpu = ["CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime.onnxruntime, "get_available_providers", lambda: only_cpu)
    described = spec([X], [Y]).model_copy(update={"config": {"instance_group": [{"kind": kind}]}})

    if kind == "KIND_GPU":
        with pytest.raises(BadModel, match="KIND_GPU, but this ONNX Runtime has no CUDA provider"):
            onnxruntime.OnnxRuntimeBackend(described, onnx_file, Placement("cuda:0"))
    else:
        backend = onnxruntime.OnnxRuntimeBackend(described, onnx_file, Placement("cuda:0"))
        assert session_of(backend).get_providers() == only_cpu


def test_with_its_provider_a_gpu_is_used_first(monkeypatch: pytest.MonkeyPatch) -> None:
    both = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime.onnxruntime, "get_available_providers", lambda: both)

    assert onnxruntime._providers("cuda:1", {"gpu_mem_limit": "9"}) == [
        ("CUDAExecutionProvider", {"device_id": "1", "gpu_mem_limit": "9"}),
        "CPUExecutionProvider",
    ]
    assert onnxruntime._providers("cpu", {}) == ["CPUExecutionProvider"]


def test_bf16_is_refused_with_its_reason(onnx_file: Path) -> None:
    with pytest.raises(BadModel, match="ONNX Runtime has no BF16 tensors in Python"):
        load("onnxruntime", spec([tensor("x", "BF16")], [Y]), onnx_file)


def test_texts_that_are_no_utf_8_fail_their_own_request(tmp_path: Path) -> None:
    ends = [helper.make_tensor_value_info(name, TensorProto.STRING, ["n", 1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "model.onnx")
    described = spec([tensor("x", "BYTES", 1)], [tensor("y", "BYTES", 1)])
    backend = load("onnxruntime", described, tmp_path / "model.onnx")

    good = backend.forward({"x": np.array([["schön".encode()]], object)}, PLAIN)

    assert good["y"].tolist() == [["schön"]]
    with pytest.raises(UnicodeDecodeError):
        backend.forward({"x": np.array([[b"\xff"]], object)}, PLAIN)
