"""Asks two models the same rows in batches of several sizes, and adds up their differences."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from shared.model_spec import ModelSpec
from worker.optimise.figures import Differences
from worker.optimise.rows import Batch, Rows
from worker.optimise.subjects import Subject

ALWAYS_SIZES = (1, 2, 7)
"""The batches that are always tried, besides the largest: alone, together, an odd number."""
SCALES = (1.0, -1.0, 0.0, 1e-3, 30.0, 1e3, 1e6)
"""What made-up numbers are multiplied by, to come to both sides of a decision about them."""


def batch_sizes(spec: ModelSpec) -> list[int]:
    """Return the sizes to compare at: 1, 2, 7 and the model's largest."""
    most = spec.batch_rows
    return sorted({size for size in (*ALWAYS_SIZES, most) if size <= most})


def sized_batches(rows: Rows, spec: ModelSpec) -> Iterator[tuple[range, Batch]]:
    """Yield one batch of each size, of rows that are not in another as far as there are enough."""
    start = 0
    for size in batch_sizes(spec):
        if start + size > rows.count:
            start = 0
        numbers = range(start, min(start + size, rows.count))
        yield numbers, rows.take(numbers)
        start = numbers.stop


def compared(
    reference: Subject, candidate: Subject, batches: Iterable[tuple[range, Batch]], rows: Rows
) -> Differences:
    """Ask both models all batches; raises BadModel where one raises, naming the number of rows."""
    found = Differences(candidate.spec)
    for numbers, batch in batches:
        labels = None if rows.labels is None else rows.labels[list(numbers)]
        found.add(reference.asked(batch), candidate.asked(batch), labels)
    return found


def probes(spec: ModelSpec, rows: Rows) -> Iterator[Batch]:
    """Yield batches that come to both sides of decisions: numbers of both signs and all sizes.

    Pictures are given as the model's own input, which is not bound to what a pixel can be.
    """
    for index, scale in enumerate(SCALES):
        size = (7, 3, 1, 4, 7, 2, 5)[index % 7]
        batch = rows.take(range(index, index + min(size, spec.batch_rows)))
        arrays = {}
        for tensor in spec.inputs:
            array = batch.inputs[tensor.name]
            if tensor.name in batch.pixels:
                shape = (batch.rows, *tensor.dims)
                noise = np.random.default_rng(index).normal(size=shape)
                array = noise.astype(np.float32)
            if array.dtype.kind == "f":
                with np.errstate(over="ignore"):
                    array = (array * scale).astype(array.dtype)
            arrays[tensor.name] = array
        yield Batch(arrays, frozenset(), batch.rows)
