"""Fills batches up to the sizes that a model is to see, so that none is new to the device."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping

import numpy as np

from shared.datatypes import Array
from worker.backends.base import Backend, close, device_fault
from worker.backends.programs.calls import is_watched


class BucketedBackend:
    """Stands before a model's own backend; for models with a batch dimension.

    Without `sizes`, which are in order, it hands batches over as they are, and so it does with one
    that is larger than all of them.
    """

    def __init__(self, backend: Backend, sizes: tuple[int, ...] = ()) -> None:
        """Run batches by `backend`."""
        self._backend = backend
        self.device_fault = device_fault(backend)
        self.sizes = sizes

    def forward(self, inputs: Mapping[str, Array], pixels: frozenset[str]) -> dict[str, Array]:
        """Run one batch as `Backend.forward` does, with copies of its last row behind it."""
        rows = len(next(iter(inputs.values())))
        at = bisect_left(self.sizes, rows)
        missing = self.sizes[at] - rows if at < len(self.sizes) and rows else 0
        if not missing or is_watched():  # for a known array: a filled one is another
            return self._backend.forward(inputs, pixels)
        filled = {name: _filled(array, missing) for name, array in inputs.items()}
        outputs = self._backend.forward(filled, pixels)
        whole = rows + missing
        return {
            name: array[:rows] if array.ndim and len(array) == whole else array
            for name, array in outputs.items()
        }

    def close(self) -> None:
        """Close the model's own backend."""
        close(self._backend)


def _filled(array: Array, missing: int) -> Array:
    return np.concatenate([array, np.repeat(array[-1:], missing, axis=0)])
