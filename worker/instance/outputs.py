"""Fits a model's answer to the outputs that its config declares, or says how the two differ."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import numpy as np

from shared.datatypes import NUMPY_TYPES, Array, datatype_of
from shared.errors import BadModelOutput
from shared.model_spec import ModelSpec, TensorSpec
from worker.repository.config.fitting import Shape, fits, with_edges

TEXTS = (bytes, str, int, float, bool, np.generic)
"""The elements that BYTES are made of, numbers by their `str`, as in Triton's Python models."""


def fitted_outputs(
    outputs: Mapping[str, Array], spec: ModelSpec, rows: int, wanted: Collection[str] = ()
) -> dict[str, Array]:
    """Return the declared outputs in their declared shapes, with one row per input row.

    Of those in `wanted` only, when it names any. Raises BadModelOutput naming the output, what the
    model gave and what the config declares.
    """
    leading = (rows,) if spec.batched else ()
    found = {}
    for declared in spec.outputs:
        name = declared.name
        if wanted and name not in wanted:
            continue
        if name not in outputs:
            raise BadModelOutput(f"output {name!r}: the model did not return it")
        array = outputs[name]
        # fast: asked for every batch, and nearly every output is as it was declared
        if declared.datatype == "BYTES" or array.dtype != NUMPY_TYPES[declared.datatype]:
            _check_datatype(array, declared)
        if array.shape != leading + declared.dims:
            array = fitted(array, declared, leading)
        found[name] = array
    return found


def fitted(array: Array, declared: TensorSpec, leading: Shape) -> Array:
    """Return an output in its declared shape, behind the `leading` rows of a batch.

    It may differ by dimensions of 1 at the edges of its rows, as long as one shape alone fits; and
    the answer to a single row may lack the batch dimension. Raises BadModelOutput for all else.
    """
    got, dims = array.shape, declared.dims
    if fits(got, leading + dims):
        return array
    found = {(*leading, *row) for row in _rows(got, leading, dims) if fits(row, dims)}
    if len(found) == 1:
        return array.reshape(found.pop())
    if leading and got[:1] != leading:
        raise BadModelOutput(
            f"output {declared.name!r}: shape {list(got)} does not have one row for each of the "
            f"{leading[0]} rows that went in, the config declares {[-1, *dims]}"
        )
    expected = [-1, *dims] if leading else list(dims)
    raise BadModelOutput(
        f"output {declared.name!r}: shape {list(got)}, the config declares {expected}"
    )


def _check_datatype(array: Array, declared: TensorSpec) -> None:
    """Raise BadModelOutput unless the array's elements are of the declared datatype."""
    if array.dtype == object:
        kinds = {type(item) for item in array.ravel()}
        if declared.datatype == "BYTES" and all(issubclass(kind, TEXTS) for kind in kinds):
            return
        got = f"Python objects ({', '.join(sorted(kind.__name__ for kind in kinds)) or 'none'})"
    else:
        try:
            datatype = datatype_of(array)
        except KeyError:
            datatype = array.dtype.name
        if datatype == declared.datatype:
            return
        got = f"datatype {datatype}"
    raise BadModelOutput(
        f"output {declared.name!r}: {got}, the config declares {declared.datatype}"
    )


def _rows(got: Shape, leading: Shape, dims: Shape) -> Iterator[Shape]:
    """Yield the shapes of a row that an output of shape `got` may stand for."""
    if got[: len(leading)] == leading:
        yield from with_edges(got[len(leading) :], len(dims))
    if leading == (1,) and len(got) <= len(dims):  # as `squeeze` leaves the answer to one row
        yield from with_edges(got, len(dims))
    if leading and got[:2] == (1, *leading):
        yield got[2:]
