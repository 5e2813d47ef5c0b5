"""Modules that are compiled, or replayed from graphs, as their policy says, or not for a reason."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from shared.errors import BadModel
from shared.model_spec import ModelSpec, TensorSpec
from worker.backends.programs.calls import GraphedCall, compiled
from worker.backends.torch_model import Argument, TorchBackend
from worker.repository.execution import ExecutionPolicy, execution_policy

NO_PIXELS: frozenset[str] = frozenset()
CPU = torch.device("cpu")
SPEC = ModelSpec(
    name="m", version="1", platform="p", max_batch_size=8,
    inputs=(TensorSpec(name="x", datatype="FP32", dims=(4,)),),
    outputs=(TensorSpec(name="y", datatype="FP32", dims=(4,)),),
)  # fmt: skip


class Doubled(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.eager_passes = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not torch.compiler.is_compiling():
            self.eager_passes += 1
        return torch.relu(x) * 2.0 + 1.0


def backend(module: torch.nn.Module) -> TorchBackend:
    return TorchBackend(SPEC, module, [Argument("x")], CPU, module)


def rows(count: int) -> dict[str, Any]:
    return {"x": np.random.default_rng(count).normal(size=(count, 4)).astype(np.float32)}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, of what it imports
def test_a_module_is_compiled_or_it_is_said_what_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Its front end alone: C++ takes a minute on a busy machine.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    module = Doubled()
    served, policy = backend(module), ExecutionPolicy(is_compiled=True)
    if shutil.which("g++") is None:
        with pytest.raises(BadModel, match=r"torch_compile true: .* g\+\+ is not here"):
            served.execute_by(policy)
        return

    served.execute_by(policy)

    for count in (1, 3, 5):
        expected = np.maximum(rows(count)["x"], 0) * 2 + 1
        np.testing.assert_allclose(served.forward(rows(count), NO_PIXELS)["y"], expected, rtol=1e-6)
    assert module.eager_passes == 0
    with Watching() as watching:
        served.forward(rows(3), NO_PIXELS)
    assert "aten::relu" in watching.seen, "who watches its operators sees the module's own"


class Watching(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.add(func._schema.name)
        return func(*args, **(kwargs or {}))


def test_without_a_compiler_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")

    with pytest.raises(
        BadModel, match=r"torch_compile true: torch compiles for a CPU .* no-such-c"
    ):
        backend(Doubled()).execute_by(ExecutionPolicy(is_compiled=True))


def test_torchscript_is_not_compiled() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        script: Any = torch.jit.script(torch.nn.ReLU())

    with pytest.raises(BadModel, match=r"no TorchScript: export the module with torch\.export"):
        compiled(script, script, CPU)


def test_a_cpu_has_no_graphs() -> None:
    with pytest.raises(BadModel, match="cuda_graphs true: it runs on the CPU, which has no CUDA"):
        backend(Doubled()).execute_by(ExecutionPolicy(has_graphs=True))


class Recorded(TorchDispatchMode):
    """Stands in for a CUDA graph: notes operators, and runs them again into the same memory."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[tuple[Any, Any, Any, torch.Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        self.steps.append((func, args, kwargs or {}, found))
        return found

    def replay(self) -> None:
        for func, args, kwargs, found in self.steps:
            found.copy_(func(*args, **kwargs))


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Recorded]]:
    """The graphs that were captured, of a stand-in for CUDA's."""
    made: list[Recorded] = []

    @contextmanager
    def capture(graph: Recorded, **_: Any) -> Iterator[None]:
        made.append(graph)
        with graph:
            yield

    stream = SimpleNamespace(wait_stream=lambda _: None)
    for name, stand_in in {
        "CUDAGraph": Recorded, "graph": capture, "graph_pool_handle": lambda: None,
        "Stream": lambda: stream, "current_stream": lambda: stream,
        "stream": lambda _: nullcontext(),
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, stand_in)
    yield made


def test_a_pass_is_captured_once_for_each_size_and_replayed(graphs: list[Recorded]) -> None:
    module = Doubled()
    call = GraphedCall(module)
    asked = [torch.randn(count, 4) for count in (2, 3, 2, 3, 2)]

    found = [call(each).clone() for each in asked]

    for each, answer in zip(asked, found, strict=True):
        torch.testing.assert_close(answer, torch.relu(each) * 2 + 1)
    assert len(graphs) == 2
    before = module.eager_passes
    call(asked[0])
    assert module.eager_passes == before, "the module itself is called no more"


def test_what_is_no_tensor_runs_as_it_is(graphs: list[Recorded]) -> None:
    call = GraphedCall(lambda texts, scale=1: len(texts) * scale)

    assert call(["a", "b"]) == 2 and call(torch.ones(3), scale=2) == 6
    assert graphs == []


@pytest.mark.parametrize("name", ["torch_compile", "cuda_graphs"])
def test_flags_are_of_modules_and_true_or_false(name: str) -> None:
    on = execution_policy("pytorch", {name: "true"}, 8)
    assert str(on) == f"{name} true" and on.of_module
    assert not str(execution_policy("pytorch", {name: "false"}, 8))
    with pytest.raises(ValueError, match=f"{name} 'yes': expected true or false"):
        execution_policy("pytorch", {name: "yes"}, 8)
    with pytest.raises(ValueError, match=f"{name} 'true' is for modules of torch"):
        execution_policy("onnxruntime", {name: "true"}, 8)
