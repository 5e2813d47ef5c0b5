"""Other ways to call a module: frozen, compiled by torch, or replayed from CUDA graphs.

Who watches a pass operator by operator, as `worker.instance.health.token_ids` does, sees the
module's own.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode

from shared.errors import BadModel

Call = Callable[..., Any]
MOST_SHAPES = 64
"""So many sizes of inputs are compiled for, or captured; what else comes runs as it is."""
WARMING_PASSES = 3
"""Before a pass is captured: libraries choose their kernels in the first ones."""


def frozen(module: torch.nn.Module) -> tuple[torch.nn.Module, Call]:
    """Return TorchScript with constants for weights and layers joined (Conv, BN, ReLU), its call.

    On a CPU convolutions become oneDNN's, in the layout that these like best. Raises BadModel for
    what is no TorchScript, and torch's own errors.
    """
    if not isinstance(module, torch.jit.ScriptModule):
        raise BadModel("torch freezes TorchScript alone: torch_compile is for other modules")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        made = torch.jit.optimize_for_inference(torch.jit.freeze(module))
    return made, made.forward


def compiled(call: Call, module: torch.nn.Module, device: torch.device) -> Call:
    """Return a module's call compiled by torch, at its first pass of each kind of inputs.

    Raises BadModel where it cannot be.
    """
    if isinstance(module, torch.jit.ScriptModule):
        raise BadModel("torch compiles no TorchScript: export the module with torch.export")
    compiler = os.environ.get("CXX", "g++")
    if device.type == "cpu" and shutil.which(compiler) is None:
        raise BadModel(f"torch compiles for a CPU with a C++ compiler, and {compiler} is not here")
    import torch._dynamo.config as dynamo  # noqa: PLC0415  it takes a second
    import torch._inductor.config as inductor  # noqa: PLC0415

    inductor.compile_threads = 1  # no pool of processes in each instance
    dynamo.recompile_limit = MOST_SHAPES
    return _unless_watched(torch.compile(call), call)


def graphed(call: Call, device: torch.device) -> Call:
    """Return a call that is captured once for each size of its inputs, and replayed from then on.

    Raises BadModel for a device that has no graphs.
    """
    if device.type != "cuda":
        raise BadModel("it runs on the CPU, which has no CUDA graphs")
    return _unless_watched(GraphedCall(call), call)


def is_watched() -> bool:
    """Tell whether somebody watches this pass operator by operator."""
    return _get_current_dispatch_mode() is not None


def _unless_watched(made: Call, plain: Call) -> Call:
    def call(*tensors: Any, **keywords: Any) -> Any:
        return (plain if is_watched() else made)(*tensors, **keywords)

    return call


class _Captured(NamedTuple):
    graph: Any
    inputs: list[torch.Tensor]
    answer: Any


class GraphedCall:
    """Captures a module's pass for each size of its inputs, and replays it.

    subtle: an answer is the graph's own memory, which the next pass writes into: it is copied to
    the CPU before that.
    """

    def __init__(self, call: Call) -> None:
        """Capture nothing yet; graphs share a pool of memory, for none runs beside another."""
        self._call = call
        self._pool = torch.cuda.graph_pool_handle()
        self._captured: dict[tuple[Any, ...], _Captured] = {}

    def __call__(self, *tensors: Any, **keywords: Any) -> Any:
        """Return the module's answer; raises its own errors, or those of capturing."""
        if keywords or not all(isinstance(each, torch.Tensor) for each in tensors):
            return self._call(*tensors, **keywords)
        key = tuple([(each.shape, each.stride(), each.dtype) for each in tensors])
        captured = self._captured.get(key)
        if captured is None:
            if len(self._captured) >= MOST_SHAPES:
                return self._call(*tensors)
            captured = self._captured[key] = self._capture(tensors)
        for own, given in zip(captured.inputs, tensors, strict=True):
            own.copy_(given)
        captured.graph.replay()
        return captured.answer

    def _capture(self, tensors: tuple[torch.Tensor, ...]) -> _Captured:
        inputs = [each.clone() for each in tensors]
        beside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(WARMING_PASSES):
                self._call(*inputs)
        torch.cuda.current_stream().wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        # Of this thread alone: the instance's other lane may use the device's driver meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            answer = self._call(*inputs)
        return _Captured(graph, inputs, answer)
