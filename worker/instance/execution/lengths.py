"""Pads rows up to the lengths that a model is to see, so that none is new to the device."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping

import numpy as np

from shared.datatypes import Array
from shared.model_spec import ModelSpec, TensorSpec
from worker.backends.base import Backend, close, device_fault
from worker.backends.programs.calls import is_watched
from worker.instance.tensor_adapter import ones

ANY_LENGTH = -1


class LengthBackend:
    """Stands before a model's own backend; for models with ragged inputs.

    Without `lengths`, which are in order, it hands batches over as they are, and so it does with
    inputs that are longer than all of them. Inputs are padded as `worker.instance.batch_parts` pads
    the shorter rows of a batch, their masks with zeros. Outputs that became as long as the padded
    inputs are cut to the length that these had.
    """

    def __init__(self, backend: Backend, spec: ModelSpec) -> None:
        """Run batches by `backend`."""
        self._backend = backend
        self.device_fault = device_fault(backend)
        self._spec = spec
        self.lengths: tuple[int, ...] = ()

    def forward(self, inputs: Mapping[str, Array], pixels: frozenset[str]) -> dict[str, Array]:
        """Run one batch as `Backend.forward` does, its rows padded."""
        if is_watched():  # for a known array: a padded one is another
            return self._backend.forward(inputs, pixels)
        padded, cuts = dict(inputs), set[tuple[int, int, bool]]()
        for name in self._spec.ragged_names & inputs.keys():
            tensor, axis = self._spec.inputs_by_name[name], self._axis(name)
            length = inputs[name].shape[axis]
            at = bisect_left(self.lengths, length)
            if at == len(self.lengths) or self.lengths[at] == length:
                continue
            cuts.add((length, self.lengths[at], tensor.pad_left))
            self._pad(padded, tensor, axis, self.lengths[at])
        outputs = self._backend.forward(padded, pixels)
        return self._cut(outputs, *cuts.pop()) if len(cuts) == 1 else outputs

    def close(self) -> None:
        """Close the model's own backend."""
        close(self._backend)

    def _axis(self, name: str) -> int:
        return 1 + self._spec.inputs_by_name[name].dims.index(ANY_LENGTH)

    def _pad(self, inputs: dict[str, Array], tensor: TensorSpec, axis: int, length: int) -> None:
        array = inputs[tensor.name]
        for mask in self._spec.masks:
            if mask.of == tensor.name:
                name = mask.tensor.name
                own = inputs[name] if name in inputs else ones(mask, array, batched=True)
                inputs[name] = _longer(own, axis, length, 0, at_left=tensor.pad_left)
        filler = b"" if array.dtype.hasobject else tensor.pad
        inputs[tensor.name] = _longer(array, axis, length, filler, at_left=tensor.pad_left)

    def _cut(
        self, outputs: dict[str, Array], length: int, padded: int, at_left: bool
    ) -> dict[str, Array]:
        own = slice(padded - length, None) if at_left else slice(length)
        return {
            name: array[(slice(None),) * axis + (own,)]
            if (axis := self._open_axis(name)) and array.shape[axis : axis + 1] == (padded,)
            else array
            for name, array in outputs.items()
        }

    def _open_axis(self, output: str) -> int:
        """Return the axis of an output's one open dimension, 0 for none."""
        dims = next((each.dims for each in self._spec.outputs if each.name == output), ())
        return 1 + dims.index(ANY_LENGTH) if dims.count(ANY_LENGTH) == 1 else 0


def _longer(array: Array, axis: int, length: int, filler: object, *, at_left: bool) -> Array:
    size = array.shape[axis]
    longer = np.full((*array.shape[:axis], length, *array.shape[axis + 1 :]), filler, array.dtype)
    own = slice(length - size, None) if at_left else slice(size)
    longer[(slice(None),) * axis + (own,)] = array
    return longer


def resized(rows: Mapping[str, Array], spec: ModelSpec, length: int) -> dict[str, Array]:
    """Return rows with their ragged inputs of another length: cut, or repeated from the start."""
    found = dict(rows)
    for name in spec.ragged_names & rows.keys():
        axis = 1 + spec.inputs_by_name[name].dims.index(ANY_LENGTH)
        found[name] = np.take(rows[name], np.arange(length) % rows[name].shape[axis], axis)
    return found
