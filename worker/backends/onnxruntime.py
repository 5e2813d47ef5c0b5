"""ONNX models, run by ONNX Runtime on CPU, or on CUDA where its provider is installed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from shared.datatypes import Array
from shared.errors import BadModel
from shared.model_spec import ModelSpec
from worker.preprocessing import Normaliser


class OnnxRuntimeBackend:
    """One inference session."""

    def __init__(self, spec: ModelSpec, file: Path, device: str, threads: int) -> None:
        """Load `file` with `threads` intra-op threads; raises what ONNX Runtime raises."""
        if any(tensor.datatype == "BF16" for tensor in spec.inputs + spec.outputs):
            raise BadModel(
                f"failed to load '{spec.name}', {file}: ONNX Runtime has no BF16 tensors in Python"
            )
        onnxruntime.disable_telemetry_events()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(str(file), options, _providers(device))
        names = {item.name for item in self._session.get_inputs()}
        if names != {tensor.name for tensor in spec.inputs}:
            raise BadModel(f"failed to load '{spec.name}', {file} has the inputs {sorted(names)}")
        self._outputs = [tensor.name for tensor in spec.outputs]
        # Pictures are normalised on the CPU here, then handed to the session without a copy.
        self._normaliser = (
            Normaliser(spec.image, torch.device("cpu"), torch.float32) if spec.image else None
        )

    def forward(self, inputs: Mapping[str, Array], pixels: frozenset[str]) -> dict[str, Array]:
        """Run one batch; see `Backend.forward`."""
        feeds = {name: self._array(array, name in pixels) for name, array in inputs.items()}
        answer = self._session.run(self._outputs, feeds)
        return dict(zip(self._outputs, map(np.asarray, answer), strict=True))

    def _array(self, array: Array, is_pixels: bool) -> Array:
        if is_pixels:
            assert self._normaliser is not None, "pixels are made for image models only"
            return self._normaliser(array).numpy()
        if array.dtype == object:
            return _strings(array)
        return np.ascontiguousarray(array)


def _strings(array: Array) -> Array:
    """Return BYTES elements as text: ONNX Runtime would take b"a" for the four letters b'a'."""
    return np.array([item.decode() for item in array.ravel()], object).reshape(array.shape)


def _providers(device: str) -> list[str | tuple[str, dict[str, int]]]:
    if not device.startswith("cuda"):
        return ["CPUExecutionProvider"]
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return ["CPUExecutionProvider"]
    index = int(device.partition(":")[2] or 0)
    return [("CUDAExecutionProvider", {"device_id": index}), "CPUExecutionProvider"]
