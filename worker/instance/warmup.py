"""Runs a model on made-up batches before it is ready, so that no client pays for the first pass."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from shared.datatypes import NUMPY_TYPES, Array, from_bytes
from shared.errors import BadModel, text_of
from shared.model_spec import ModelSpec
from worker.backends.base import Backend
from worker.instance.outputs import fitted_outputs
from worker.repository.config.warmup import WarmupInput, WarmupSample

ANY_SIZE = 16
"""The size that a dimension of -1 is warmed with."""
SAMPLE_SEED = 5


def warm_up(spec: ModelSpec, backend: Backend) -> None:
    """Run every batch size in 1, 2, 4 ... max_batch_size; raises the model's own errors."""
    for rows in batch_sizes(spec.batch_rows):
        inputs = {tensor.name: _ones(spec, index, rows) for index, tensor in enumerate(spec.inputs)}
        backend.forward(inputs, frozenset({spec.image.input} if spec.image else ()))


def run_samples(spec: ModelSpec, backend: Backend, samples: Sequence[WarmupSample]) -> None:
    """Run a config's `model_warmup`; raises BadModel naming the sample on which the model fails."""
    for sample in samples:
        try:
            for _ in range(sample.count):
                outputs = backend.forward(_rows_of(sample, spec), frozenset())
                fitted_outputs(outputs, spec, sample.rows)
        except BaseException as error:  # a border: whatever a model raises, the sample is named
            raise BadModel(f"model_warmup {sample.name!r}: {text_of(error)}") from error


def _rows_of(sample: WarmupSample, spec: ModelSpec) -> dict[str, Array]:
    """Return the sample's inputs: one row each, as often as it has rows."""
    inputs = {}
    for item in sample.inputs:
        row = _row(item)
        inputs[item.name] = np.stack([row] * sample.rows) if spec.batched else row
    return inputs


def _row(item: WarmupInput) -> Array:
    """Return the values of one row: random numbers from 0 to 1, whole ones 0 or 1, seeded."""
    if item.file is not None:
        return from_bytes(item.file.read_bytes(), item.datatype, item.dims)
    dtype = NUMPY_TYPES[item.datatype]
    if item.kind == "zero":
        return np.full(item.dims, b"" if dtype.hasobject else 0, dtype)
    random = np.random.default_rng(SAMPLE_SEED)
    if dtype.hasobject:
        words = [random.bytes(4).hex().encode() for _ in range(prod(item.dims))]
        return np.array(words, object).reshape(item.dims)
    if dtype.kind in "iub":
        return random.integers(0, 2, item.dims).astype(dtype)
    return random.random(item.dims).astype(dtype)


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
