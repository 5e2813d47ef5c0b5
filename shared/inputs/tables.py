"""Columns of a table become a model's inputs: of their names, the only one, or all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from shared.datatypes import NUMPY_TYPES, Array
from shared.model_spec import ModelSpec, TensorSpec

TEXT_COLUMNS = ("text", "sentence", "input_text")
PICTURE_COLUMNS = ("image", "file", "path", "picture")
PICTURE_ENDINGS = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
)
MAX_COLUMNS = 5

Column = Sequence[Any]


def only_column(columns: Mapping[str, Column], usual: Sequence[str], spec: ModelSpec) -> str | None:
    """Return the column that is the only input: by its name, a usual one, or alone."""
    names = [*spec.inputs_by_name, *usual]
    found = next((name for name in names if name in columns), None)
    return next(iter(columns)) if found is None and len(columns) == 1 else found


def declared_inputs(columns: Mapping[str, Column], spec: ModelSpec) -> dict[str, Array]:
    """Return arrays [rows, ...]: columns of the inputs' names, or the one input from all columns.

    Raises ValueError naming the column or the input.
    """
    wanted = [tensor for tensor in spec.inputs if not tensor.optional or tensor.name in columns]
    missing = [tensor.name for tensor in wanted if tensor.name not in columns]
    if not missing:
        return {each.name: shaped_rows(_array(columns, each.name, each), each) for each in wanted}
    if len(wanted) == 1:
        tensor = wanted[0]
        arrays = [_array(columns, name, tensor) for name in columns]
        if len(columns) == 1:
            return {tensor.name: shaped_rows(arrays[0], tensor)}
        if all(array.ndim == 1 for array in arrays):
            return {tensor.name: shaped_rows(np.stack(arrays, axis=1), tensor)}
    raise ValueError(
        f"there is no column {missing[0]!r} among {', '.join(sorted(columns)[:MAX_COLUMNS])}"
    )


def _array(columns: Mapping[str, Column], name: str, tensor: TensorSpec) -> Array:
    column = columns[name]
    if isinstance(column, np.ndarray) and column.dtype.kind not in "US":
        return column
    if tensor.datatype == "BYTES":
        return np.array([str(each).encode() for each in column], object)
    try:
        return np.asarray([_number(each) for each in column])
    except (ValueError, TypeError) as error:
        raise ValueError(f"column {name!r} is no {tensor.datatype}: {error}") from error


def _number(value: Any) -> Any:
    return float(value) if isinstance(value, str) else value


def shaped_rows(array: Array, tensor: TensorSpec) -> Array:
    """Return rows as the declared input; raises ValueError for another shape, or lost digits."""
    row = tensor.dims
    fits = len(row) == array.ndim - 1 and all(
        size in (-1, got) for size, got in zip(row, array.shape[1:], strict=True)
    )
    if not fits and int(np.prod(array.shape[1:])) == abs(int(np.prod(row))) and min(row) > 0:
        array, fits = array.reshape(len(array), *row), True
    if not fits:
        raise ValueError(
            f"input {tensor.name!r}: rows of shape {list(array.shape[1:])}, the model wants "
            f"{list(row)}"
        )
    if array.dtype.hasobject and tensor.datatype != "BYTES":
        raise ValueError(f"input {tensor.name!r}: the rows are no {tensor.datatype}")
    is_whole = NUMPY_TYPES[tensor.datatype].kind in "iub"
    if is_whole and array.dtype.kind == "f" and not np.array_equal(array, np.round(array)):
        raise ValueError(f"input {tensor.name!r}: the model wants {tensor.datatype}, not fractions")
    return array.astype(NUMPY_TYPES[tensor.datatype])
