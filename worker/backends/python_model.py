"""Models that are Python files: a class `Model` of our own, described here, or Triton's.

    class Model:
        def load(self, context): ...        # once, before the first batch; may be left out
        def forward(self, inputs): ...      # {name: array [rows, ...]} in, {name: array} out
        def close(self): ...                # once, after the last batch; may be left out
        def device_fault(self): ...         # why its device is dead, "" if not; may be left out

The file is the operator's code and runs with all rights of the worker.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from shared.datatypes import NUMPY_TYPES, Array
from shared.errors import BadModel, BadModelOutput, described
from shared.model_spec import ModelSpec, TensorSpec
from worker.backends import triton_python_backend_utils
from worker.backends.base import Backend, device_fault, named_outputs
from worker.backends.operator_code import import_file
from worker.backends.preprocessing import PixelArrays, own_arrays
from worker.backends.torch_arrays import output_array
from worker.backends.triton_python import TritonPythonBackend
from worker.devices import Placement

Result = TypeVar("Result")
ANSWERS = (Mapping, tuple, np.ndarray, torch.Tensor)
"""What `forward` may return besides a dataclass: arrays by name, in order, or a single one."""


@dataclass(frozen=True)
class Context:
    """The argument of `Model.load`: the model's directory, device and declarations."""

    name: str
    version: str
    directory: Path
    device: str
    threads: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    parameters: Mapping[str, str]


def load_python(spec: ModelSpec, file: Path, placement: Placement) -> Backend:
    """Run `model.py` and return its model, loaded; raises BadModel with the file's own error."""
    sys.modules["triton_python_backend_utils"] = triton_python_backend_utils
    triton_python_backend_utils.set_model_dir(file.parent)
    module = _running(lambda: import_file(file), file)
    if triton := getattr(module, "TritonPythonModel", None):
        return _running(lambda: TritonPythonBackend(triton, spec, file, placement), file)
    if own := getattr(module, "Model", None):
        return _running(lambda: PythonBackend(own, spec, file, placement), file)
    raise BadModel("the file defines neither a class Model nor a class TritonPythonModel")


class PythonBackend:
    """A `Model` as described above: whole batches in, whole batches out."""

    def __init__(self, model: Any, spec: ModelSpec, file: Path, placement: Placement) -> None:
        """Make a `model` and load it; raises BadModel or the operator's own errors."""
        if not callable(getattr(model, "forward", None)):
            raise BadModel("the class Model has no forward(self, inputs)")
        self._model = model()
        self.device_fault = device_fault(self._model)
        self._pixels = PixelArrays(spec)
        self._outputs = {tensor.name: tensor for tensor in spec.outputs}
        context = Context(
            spec.name, spec.version, file.parent, placement.device, placement.threads,
            spec.inputs, spec.outputs, spec.parameters,
        )  # fmt: skip
        if hasattr(self._model, "load"):
            self._model.load(context)

    def forward(self, inputs: Mapping[str, Array], pixels: frozenset[str]) -> dict[str, Array]:
        """Run one batch; see `Backend.forward`."""
        answer = self._model.forward(own_arrays(inputs, pixels, self._pixels))
        if not (
            isinstance(answer, Mapping | tuple | np.ndarray | torch.Tensor) or is_dataclass(answer)
        ):
            kind = type(answer).__name__
            raise BadModelOutput(f"forward returned a {kind}, not arrays by output name")
        found = named_outputs(answer, [*self._outputs])
        return {name: _array(value, self._outputs[name]) for name, value in found.items()}

    def watch(self, see: Callable[[Any], None]) -> None:
        """Show `see` each answer of the model as it comes, before its outputs are named."""
        forward = self._model.forward

        def shown(inputs: Mapping[str, Array]) -> Any:
            answer = forward(inputs)
            see(answer)
            return answer

        self._model.forward = shown

    def close(self) -> None:
        """Close the model, where it has a `close`."""
        if hasattr(self._model, "close"):
            self._model.close()


def _array(value: Any, declared: TensorSpec) -> Array:
    """Return one output of `forward` as an array; raises BadModelOutput for what cannot be one.

    Python's own numbers have no datatype, so lists of them get the declared one where it holds
    them. Raises ValueError for rows of different size, which alone may be right.
    """
    if isinstance(value, torch.Tensor):
        return output_array(value, declared)
    if hasattr(value, "toarray"):  # a sparse matrix
        value = value.toarray()
    wanted = NUMPY_TYPES[declared.datatype]
    try:
        found = np.asarray(value)
        may_be = {"i": "iuf", "f": "f"}.get(found.dtype.kind, "")
        if hasattr(value, "dtype") or wanted.kind not in may_be:
            return found
        return np.asarray(value, wanted)
    except OverflowError as error:
        raise BadModelOutput(f"output {declared.name!r}: {error}") from error
    except ValueError as error:
        raise ValueError(f"output {declared.name!r}: {error}") from error


def _running(step: Callable[[], Result], file: Path) -> Result:
    """Run the operator's code; raises BadModel with the line that raised, in place of anything."""
    try:
        return step()
    except BadModel:
        raise
    except BaseException as error:  # a border: whatever the file does on loading
        lines = [
            frame.lineno
            for frame in traceback.extract_tb(error.__traceback__)
            if frame.filename == str(file)
        ]
        where = f" in line {lines[-1]}" if lines else ""
        said = described(error).removeprefix(type(error).__name__)
        raise BadModel(f"{type(error).__name__}{where}{said}") from error
