"""Finds models whose answers depend on chance, or on the other rows of a batch.

A graph traced in training mode keeps its dropout, and batch normalisation that uses the batch's own
statistics. A model without a mask takes the padding beside a longer row for a part of its own. All
of them serve without an error, and answer a row differently alone, in a batch, or twice.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np

from shared.datatypes import Array
from shared.model_spec import ModelSpec
from worker.instance.batch_parts import stack
from worker.instance.warmup import said
from worker.repository.config.tensors import MASK_KEY

log = logging.getLogger(__name__)

CHECKED = {"torchscript", "torch_export", "torch_pickle", "torch_state_dict", "onnxruntime"}
OPT_OUT = "allow_nondeterministic"
PROBE_ROWS = 3
REPEAT_TOLERANCE = 1e-3
"""Of the largest value: the same kernels on the same numbers differ in the order of sums only."""
BATCH_TOLERANCE = 0.1
"""Of the largest value. Kernels for other batch sizes differ by 1e-5, in half precision 1e-2, and
dynamic quantisation, which takes its scale from the whole batch, by a few 1e-2 (2026-11-21).
Batch normalisation in training mode differs by about as much as there is."""
LENGTH_TOLERANCE = 1e-3
TIMES_OF_COMPANY = 4
"""What another row of the same length may change by itself, a longer one may change so often."""

Found = TypeVar("Found")
Arrays = Mapping[str, Array]
Run = Callable[[Arrays], Arrays]
Make = Callable[[int], Arrays]
"""Returns so many rows, the same each time, in arrays that nobody else holds: a model may write
into its input, and must find it as it was in the next pass."""


def unsteadiness(spec: ModelSpec, backend_name: str, run: Run, makes: Sequence[Make]) -> str:
    """Return how an exported model answers the same row differently, an empty string if it doesn't.

    Three passes over the first of `makes` that it takes. Nothing is said of models that run the
    operator's own code, that take BYTES, or whose config says `allow_nondeterministic`.
    """
    if backend_name not in CHECKED or spec.parameters.get(OPT_OUT) == "true":
        return ""
    if any(tensor.datatype == "BYTES" for tensor in spec.inputs):
        return ""
    count = min(PROBE_ROWS, spec.batch_rows)
    return _first_taken(spec, makes, lambda make: _unsteady(spec, run, make, count)) or ""


def _unsteady(spec: ModelSpec, run: Run, make: Make, count: int) -> str:
    first, second = run(make(count)), run(make(count))
    if _distance(first, second) > REPEAT_TOLERANCE:
        return _sentence("when it is asked the same twice", "dropout")
    if spec.max_batch_size > 1:
        alone = run(_row(make(count), 0))
        if _distance(_floats(_row(first, 0)), _floats(alone)) > BATCH_TOLERANCE:
            return _sentence("alone and in a batch", "batch normalisation")
    return ""


def _sentence(when: str, suspect: str) -> str:
    return (
        f"it answers the same row differently {when}, as with {suspect} in training mode: "
        f"export it after eval(). If it is meant to, say so with parameters {{ key: "
        f'"{OPT_OUT}" value {{ string_value: "true" }} }}'
    )


def padding_effect(spec: ModelSpec, run: Run, makes: Sequence[Make]) -> str:
    """Return why requests of different length must not share a batch, an empty string if they may.

    Rows are asked alone, beside another one, and beside a longer one, which has them padded.
    """
    if spec.max_batch_size <= 1 or not spec.ragged_names:
        return ""
    change = _first_taken(spec, makes, lambda make: _change_by_padding(spec, run, make)) or 0.0
    if not change:
        return ""
    by = "" if np.isinf(change) else f" by {change:.1%} of the largest value"
    return (
        f"it answers a row differently beside a longer one{by}: requests of different length do "
        "not share a batch. They do when the model leaves out padding, by a mask for example "
        f"({MASK_KEY}<input> in the config's parameters)"
    )


def _change_by_padding(spec: ModelSpec, run: Run, make: Make) -> float:
    """Return how much padding changes a row, 0 when no more than another row beside it does."""
    for index in range(PROBE_ROWS):
        for short, long, other in _pairs(spec, make, index):
            try:
                beside = run(stack([short, long], spec))
            except BaseException as error:  # a border: it need not take that length
                log.debug("%s: a length is not looked at, it raised %s", spec.key, said(error))
                continue
            company = run(stack([short, other], spec))
            alone = run(short)
            change = _distance(alone, _row(beside, 0))
            usual = TIMES_OF_COMPANY * _distance(alone, _row(company, 0))
            if change > max(LENGTH_TOLERANCE, usual):
                return change
            break
    return 0.0


def _pairs(spec: ModelSpec, make: Make, index: int) -> Iterator[tuple[Arrays, Arrays, Arrays]]:
    """Yield a row, a longer one and another of its own length: twice as long, or half as short."""
    rows = _signed(make(PROBE_ROWS))
    row, other = _row(rows, index), _row(rows, index - 1)
    yield row, _resized(spec, row, 2.0), other
    yield _resized(spec, row, 0.5), row, _resized(spec, other, 0.5)


def _signed(rows: Arrays) -> Arrays:
    """Return rows of which one has only positive values, and one only negative: 0 stands out."""
    signed = {name: array.copy() for name, array in rows.items()}
    for array in signed.values():
        if array.dtype.kind not in "iubO" and len(array) == PROBE_ROWS:
            array[1], array[2] = abs(array[1]), -abs(array[2])
    return signed


def _resized(spec: ModelSpec, row: Arrays, factor: float) -> Arrays:
    """Return a row with each free dimension of its ragged inputs as often as long."""
    resized = {}
    for name, array in row.items():
        for axis, size in enumerate(spec.inputs_by_name[name].dims, 1):
            if size == -1 and name in spec.ragged_names:
                length = max(1, int(array.shape[axis] * factor))
                array = np.take(array, np.arange(length) % array.shape[axis], axis)  # noqa: PLW2901
        resized[name] = array
    return resized


def _first_taken(
    spec: ModelSpec, makes: Sequence[Make], ask: Callable[[Make], Found]
) -> Found | None:
    """Return the finding of the first rows that the model takes, None when it takes none."""
    for make in makes:
        try:
            return ask(make)
        except BaseException as error:  # a border: the model may refuse what is made up
            log.info("%s: not looked at by some rows, it raised %s", spec.key, said(error))
    return None


def _row(arrays: Arrays, index: int) -> Arrays:
    return {name: array[index : index + 1] for name, array in arrays.items()}


def _floats(arrays: Arrays) -> Arrays:
    """Leave out labels and counts, which may flip at a boundary."""
    return {name: array for name, array in arrays.items() if array.dtype.kind not in "iub"}


def _distance(one: Arrays, other: Arrays) -> float:
    return max((_apart(one[name], other[name]) for name in one), default=0.0)


def _apart(one: Array, other: Array) -> float:
    """Return how far two values are apart at most, as a part of the largest; shapes infinitely."""
    if one.shape != other.shape:
        return np.inf
    if one.dtype.kind in "OSUb":
        return 0.0 if (one == other).all() else np.inf
    left, right = one.astype(np.float64), other.astype(np.float64)
    known = np.isfinite(left)
    if (known != np.isfinite(right)).any():
        return np.inf
    if not known.any():
        return 0.0
    largest = max(np.abs(left[known]).max(), np.abs(right[known]).max())
    apart = np.abs(left - right)[known].max()
    return float(apart / largest) if apart else 0.0
