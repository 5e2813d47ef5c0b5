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
    if any(each is None for each in column):
        raise ValueError(f"column {name!r} has no value")
    if isinstance(column, np.ndarray) and column.dtype.kind not in "US":
        return column
    if tensor.datatype == "BYTES":
        return np.array([_bytes(each) for each in column], object)
    is_whole = NUMPY_TYPES[tensor.datatype].kind in "iu"
    try:
        return np.asarray([_number(each, is_whole=is_whole) for each in column])
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"column {name!r} is no {tensor.datatype}: {error}") from error


def _bytes(value: Any) -> Any:
    """Return a text or bytes as bytes, lists of them item by item."""
    if isinstance(value, list):
        return [_bytes(each) for each in value]
    return value if isinstance(value, bytes) else str(value).encode()


def _number(value: Any, *, is_whole: bool) -> Any:
    """Return a number; of a whole one all digits, which a float would not keep."""
    if not isinstance(value, str):
        return value
    try:
        return int(value) if is_whole else float(value)
    except ValueError:
        return float(value)


def shaped_rows(array: Array, tensor: TensorSpec) -> Array:
    """Return rows as the declared input; raises ValueError for another shape, or lost digits."""
    row = tensor.dims
    fits = len(row) == array.ndim - 1 and all(
        size in (-1, got) for size, got in zip(row, array.shape[1:], strict=True)
    )
    is_open = any(size < 0 for size in row)
    if not fits and not is_open and int(np.prod(array.shape[1:])) == int(np.prod(row)):
        array, fits = array.reshape(len(array), *row), True
    if not fits:
        raise ValueError(
            f"input {tensor.name!r}: rows of shape {list(array.shape[1:])}, the model wants "
            f"{list(row)}"
        )
    if array.dtype.hasobject and tensor.datatype != "BYTES":
        raise ValueError(f"input {tensor.name!r}: the rows are no {tensor.datatype}")
    _check_values(array, tensor)
    return array.astype(NUMPY_TYPES[tensor.datatype])


def _check_values(array: Array, tensor: TensorSpec) -> None:
    """Raise ValueError where the model's type would hold another number than stands there."""
    wanted, given = NUMPY_TYPES[tensor.datatype], array.dtype.kind
    where = f"input {tensor.name!r}"
    if wanted.kind in "iub" and given == "f" and not np.array_equal(array, np.round(array)):
        raise ValueError(f"{where}: the model wants {tensor.datatype}, not fractions")
    if given not in "iuf" or not array.size:
        return
    least, most = array.min(), array.max()
    if wanted.kind in "iu":
        limits = np.iinfo(wanted)
        low, high = int(limits.min), int(limits.max)
        # Whole numbers are compared as such: a float would round the limits.
        beyond = not (np.isfinite(least) and np.isfinite(most)) or not (
            low <= int(least) and int(most) <= high
        )
    else:
        with np.errstate(over="ignore"):
            became = array.astype(wanted).astype(np.float64)
        beyond = bool((np.isfinite(array) & ~np.isfinite(became)).any())
    if beyond:
        raise ValueError(f"{where}: {least} to {most} is beyond {tensor.datatype}")
