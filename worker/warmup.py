"""Runs a model on made-up batches before it is ready, so that no client pays for the first pass."""

from __future__ import annotations

import numpy as np

from shared.datatypes import NUMPY_TYPES, Array
from shared.model_spec import ModelSpec
from worker.backends.base import Backend

ANY_SIZE = 16
"""What a dimension of -1 is warmed with."""


def warm_up(spec: ModelSpec, backend: Backend) -> None:
    """Run every batch size in 1, 2, 4 ... max_batch_size; raises what the model raises."""
    for rows in batch_sizes(spec.batch_rows):
        inputs = {tensor.name: _ones(spec, index, rows) for index, tensor in enumerate(spec.inputs)}
        backend.forward(inputs, frozenset({spec.image.input} if spec.image else ()))


def batch_sizes(largest: int) -> list[int]:
    """Return the powers of two up to `largest`, and `largest` itself."""
    sizes = [1]
    while sizes[-1] * 2 <= largest:
        sizes.append(sizes[-1] * 2)
    return sizes if sizes[-1] == largest else [*sizes, largest]


def _ones(spec: ModelSpec, index: int, rows: int) -> Array:
    tensor = spec.inputs[index]
    if spec.image and spec.image.input == tensor.name:
        shape = (rows, spec.image.height, spec.image.width, len(spec.image.channels))
        return np.ones(shape, np.uint8)
    dims = [ANY_SIZE if size == -1 else size for size in tensor.dims]
    if tensor.datatype == "BYTES":
        return np.full([rows, *dims] if spec.batched else dims, b"", dtype=object)
    return np.ones([rows, *dims] if spec.batched else dims, NUMPY_TYPES[tensor.datatype])
