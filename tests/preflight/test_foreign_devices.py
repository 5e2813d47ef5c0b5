"""Models load onto their instance's device wherever they were exported, or say what to change."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_backend import FakeBackend, fake_spec
from scripted_models import save_scripted
from torch._subclasses.fake_tensor import FakeTensorMode

from shared.datatypes import Array
from shared.errors import BadModel
from worker.backends.torch_compiled import TorchScriptBackend, bring_constants
from worker.backends.torch_export import TorchExportBackend
from worker.instance.warmup import warm_up

X = {"x": np.array([[1.0, 2.0]], np.float32)}
CPU_TAG, CUDA_TAG = (b"X" + len(word).to_bytes(4, "little") + word for word in (b"cpu", b"cuda:0"))


def helped(x: torch.Tensor) -> torch.Tensor:
    return x + torch.ones([2], device=torch.device("cuda"))


class Inner(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.zeros([2], device="cuda:1")


class Named(torch.nn.Module):
    """Names a GPU in a branch, in a function and in a submodule, as a trace on one does."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Inner()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if bool((x > 0).all()):
            x = helped(x)
        return self.inner(x) - torch.ones([2], device=torch.device("cuda:3")) + x


class Two(torch.nn.Module):
    """Answers 2x, by a buffer and a constant made on the device of x."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("two", torch.full((2,), 2.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.two + torch.zeros((2,), device=x.device)


def test_torchscript_that_names_a_gpu_runs_on_the_cpu(tmp_path: Path) -> None:
    save_scripted(Named(), tmp_path / "model.pt")

    backend = TorchScriptBackend(fake_spec(), tmp_path / "model.pt", "cpu")

    assert backend.forward(X, frozenset())["y"].tolist() == [[3.0, 5.0]]


def test_torchscript_that_was_traced_on_the_cpu_names_the_gpu_it_is_placed_on() -> None:
    class Traced(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.zeros((2,))

    with pytest.warns(DeprecationWarning):
        traced: Any = torch.jit.trace(Traced(), torch.ones(2))

    bring_constants(traced, torch.device("cuda:0"))

    assert 'Device = prim::Constant[value="cuda:0"]' in str(traced.forward.graph)
    assert '"cpu"' not in str(traced.forward.graph)


def exported_on_a_gpu(file: Path) -> None:
    """Write an exported program as torch does on a GPU: each device in it is that."""
    shapes = ({0: torch.export.Dim("rows", max=8)},)
    program = torch.export.export(Two().eval(), (torch.ones(2, 2),), dynamic_shapes=shapes)
    torch.export.save(program, file)
    with zipfile.ZipFile(file) as archive:
        content = {each: archive.read(each) for each in archive.namelist()}
    changed = 0
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in content.items():
            moved = data
            if name.endswith(".json"):
                moved = json.dumps(_moved(json.loads(data))).encode()
            elif name.endswith(".pt"):
                moved = _moved_tensors(data)
            changed += moved != data
            archive.writestr(name, moved)
    assert changed >= 3, "the graph, the weights and the example inputs name a device"


def _moved(part: Any) -> Any:
    if isinstance(part, list):
        return [_moved(each) for each in part]
    if not isinstance(part, dict):
        return part
    if part.get("type") == "cpu" and "index" in part:
        return {"type": "cuda", "index": 0}
    return {key: _moved(value) for key, value in part.items()}


def _moved_tensors(saved: bytes) -> bytes:
    if not zipfile.is_zipfile(io.BytesIO(saved)):
        return saved
    written = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(saved)) as old, zipfile.ZipFile(written, "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name).replace(CPU_TAG, CUDA_TAG))
    return written.getvalue()


def test_a_program_that_was_exported_on_a_gpu_runs_on_the_cpu(tmp_path: Path) -> None:
    file = tmp_path / "model.pt2"
    exported_on_a_gpu(file)
    with pytest.raises(Exception, match=r"CUDA|deserializing"):
        torch.export.load(file)

    backend = TorchExportBackend(fake_spec(), file, "cpu")

    assert backend.forward(X, frozenset())["y"].tolist() == [[2.0, 4.0]]


def test_code_that_mixes_devices_is_refused_with_the_remedy() -> None:
    """FakeTensorMode knows the devices of a machine with GPUs, and refuses what they do."""
    with FakeTensorMode():
        weight = torch.ones(2, device="cuda:0")

        def mixed(_: Mapping[str, Array]) -> dict[str, Array]:
            return {"y": (weight + torch.ones(2)).numpy()}

        with pytest.raises(BadModel, match=r"make them with device=x\.device.* KIND_CPU"):
            warm_up(fake_spec(), lambda inputs: FakeBackend(mixed).forward(inputs, frozenset()))


@pytest.mark.parametrize(
    "said",
    [
        "Expected all tensors to be on the same device, but found at least two devices, cuda:0 "
        "and cpu!",
        "Expected all tensors to be on the same device, but got mat2 is on cpu, different from "
        "other tensors on cuda:0 (when checking argument in method wrapper_CUDA_mm)",
        "indices should be either on cpu or on the same device as the indexed tensor (cpu)",
        "Input type (torch.cuda.FloatTensor) and weight type (torch.FloatTensor) should be the "
        "same",
    ],
)
def test_torchs_words_for_mixed_devices_are_known(said: str) -> None:
    def mixed(_: Mapping[str, Array]) -> dict[str, Array]:
        raise RuntimeError(said)

    with pytest.raises(BadModel, match="another device than the one that it runs on"):
        warm_up(fake_spec(), mixed)
