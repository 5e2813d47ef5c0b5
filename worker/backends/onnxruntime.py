"""ONNX models, run by ONNX Runtime on CPU, or on CUDA where its provider is installed."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from shared.datatypes import Array
from shared.errors import BadModel
from shared.model_spec import ModelSpec
from worker.backends.base import wants_gpu
from worker.backends.preprocessing import PixelArrays
from worker.devices import NO_PROVIDER, Placement
from worker.repository.config.description import onnx_tensor
from worker.repository.config.fitting import check_described
from worker.repository.config.parameters import (
    ARENA_SHRINKAGE,
    arena_shrinkage,
    cuda_options,
)
from worker.repository.file_kinds import ORT
from worker.repository.sniffer import what_is

LONG_SECONDS = 0.5
"""A pass that takes longer, by the elements of those before it, gives its memory back behind it."""
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


class OnnxRuntimeBackend:
    """One inference session."""

    def __init__(self, spec: ModelSpec, file: Path, placement: Placement) -> None:
        """Load `file` with the placement's threads; raises BadModel or the runtime's errors."""
        if any(tensor.datatype == "BF16" for tensor in spec.inputs + spec.outputs):
            raise BadModel("ONNX Runtime has no BF16 tensors in Python")
        onnxruntime.disable_telemetry_events()
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = _graph_optimisation(spec)
        options.intra_op_num_threads = placement.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Threads that spin between two passes would take cores from the API.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if what_is(file) == ORT:  # which the runtime knows by the ending alone
            options.add_session_config_entry("session.load_model_format", "ORT")
        providers = _providers(placement.device, cuda_options(spec.parameters))
        self._session = open_session(file, options, providers)
        self.on_cpu_since = _why_not_there(placement.device, self._session.get_providers())
        if self.on_cpu_since and wants_gpu(spec):
            raise BadModel(f"instance_group: KIND_GPU, but {self.on_cpu_since}")
        _check_names(spec, self._session)
        _check_tensors(spec, self._session)
        self._seconds_each = 0.0
        shrinks = arena_shrinkage(spec.parameters, _cuda_id(self._session, placement.device))
        self._always = _giving_back(shrinks) if shrinks else None
        self._if_long = self._always or _giving_back("cpu:0")
        self._outputs = [tensor.name for tensor in spec.outputs]
        self._pixels = PixelArrays(spec)

    def forward(self, inputs: Mapping[str, Array], pixels: frozenset[str]) -> dict[str, Array]:
        """Run one batch; see `Backend.forward`."""
        feeds = {
            name: self._pixels(array) if name in pixels else _feed(array)
            for name, array in inputs.items()
        }
        count = sum(array.size for array in feeds.values())
        began = time.monotonic()
        is_long = count * self._seconds_each > LONG_SECONDS
        options = self._if_long if is_long else self._always
        answer = self._session.run(self._outputs, feeds, options)
        self._seconds_each += ((time.monotonic() - began) / max(1, count) - self._seconds_each) / 8
        return dict(zip(self._outputs, map(_array, answer), strict=True))


def _giving_back(devices: str) -> Any:
    """Return options by which a pass gives its memory back; see `arena_shrinkage`."""
    options = onnxruntime.RunOptions()
    options.add_run_config_entry(ARENA_SHRINKAGE, devices)
    return options


def _cuda_id(session: Any, device: str) -> str:
    """Return the number of the GPU that a session runs on, empty on the CPU."""
    return (device.partition(":")[2] or "0") if CUDA in session.get_providers() else ""


def open_session(file: Path, options: Any, providers: Sequence[Any]) -> Any:
    """Load a file so that its layers run in the precisions that it has them in.

    subtle: ONNX Runtime would quantise the weights of a layer in FP32 between layers of 8 bits.
    """
    return onnxruntime.InferenceSession(
        str(file), options, list(providers), disabled_optimizers=["WeightBiasQuantization"]
    )


def _feed(array: Array) -> Array:
    """Return BYTES elements as text: ONNX Runtime would take b"a" for the four letters b'a'."""
    if array.dtype == object:
        return np.array([item.decode() for item in array.ravel()], object).reshape(array.shape)
    return np.ascontiguousarray(array)


def _array(answer: Any) -> Array:
    """Return an output as an array: probabilities by class in the order of the classes."""
    if isinstance(answer, list) and answer and isinstance(answer[0], dict):
        return np.array([[*row.values()] for row in answer], np.float32)
    return np.asarray(answer)


def _check_names(spec: ModelSpec, session: Any) -> None:
    """Raise BadModel unless the session takes the declared inputs and gives the outputs."""
    required = {item.name for item in session.get_inputs() if not _may_be_absent(item)}
    defaulted = {item.name for item in session.get_overridable_initializers()}
    optional = defaulted | {item.name for item in session.get_inputs() if _may_be_absent(item)}
    declared = {tensor.name for tensor in spec.inputs}
    if not required <= declared <= required | optional:
        also = f" and can do without {sorted(optional)}" if optional else ""
        raise BadModel(
            f"the file has the inputs {sorted(required)}{also}, the config {sorted(declared)}"
        )
    wrong = [item.name for item in spec.inputs if item.optional and item.name not in optional]
    if wrong:
        raise BadModel(f"input {wrong[0]!r} is optional in the config, but not in the file")
    given = [item.name for item in session.get_outputs()]
    if not {tensor.name for tensor in spec.outputs} <= set(given):
        raise BadModel(
            f"the file has the outputs {given}, the config {[each.name for each in spec.outputs]}"
        )


def _check_tensors(spec: ModelSpec, session: Any) -> None:
    """Raise BadModel unless the declared tensors are of the file's datatypes and sizes."""
    declared = {tensor.name for tensor in spec.inputs + spec.outputs}
    inputs, outputs = (
        [node for node in nodes if node.name in declared]
        for nodes in (session.get_inputs(), session.get_outputs())
    )
    try:
        check_described(
            spec,
            {node.name: onnx_tensor(node) for node in inputs},
            {node.name: onnx_tensor(node) for node in outputs},
        )
    except ValueError as error:
        raise BadModel(str(error)) from error


def _may_be_absent(item: Any) -> bool:
    kind: str = item.type
    return kind.startswith("optional")


def _graph_optimisation(spec: ModelSpec) -> Any:
    """Return the level of optimization.graph.level in the config, all of it for 0 or none.

    Source: https://github.com/triton-inference-server/onnxruntime_backend, "Model Config Options".
    """
    levels = onnxruntime.GraphOptimizationLevel
    level = spec.config.get("optimization", {}).get("graph", {}).get("level", 0)
    by_level = {
        -1: levels.ORT_ENABLE_BASIC,
        0: levels.ORT_ENABLE_ALL,
        1: levels.ORT_ENABLE_EXTENDED,
        2: levels.ORT_DISABLE_ALL,
    }
    if level not in by_level:
        raise BadModel(f"optimization.graph.level {level}: expected one of {sorted(by_level)}")
    return by_level[level]


def _providers(device: str, of_cuda: Mapping[str, str]) -> list[str | tuple[str, dict[str, str]]]:
    """Return the providers for `device`, as far as this runtime has them."""
    if not device.startswith("cuda") or CUDA not in onnxruntime.get_available_providers():
        return [CPU]
    return [(CUDA, {"device_id": device.partition(":")[2] or "0", **of_cuda}), CPU]


def _why_not_there(device: str, providers: Sequence[str]) -> str:
    """Return why a session placed on a GPU has no provider for it; empty where it has one.

    The runtime falls back to the CPU, in silence, where a library of CUDA's is missing.
    """
    if not device.startswith("cuda") or CUDA in providers:
        return ""
    if CUDA not in onnxruntime.get_available_providers():
        return NO_PROVIDER
    return (
        "ONNX Runtime could not use its CUDA provider and fell back to the CPU: CUDA or cuDNN are "
        "missing, or of another version than it was built for"
    )
