"""Puts the rows of a batch's requests behind each other, padding ragged inputs (stop 4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from shared.datatypes import NUMPY_TYPES, Array
from shared.model_spec import ModelSpec


def stack(parts: Sequence[Mapping[str, Array]], spec: ModelSpec) -> dict[str, Array]:
    """Return the rows of all `parts`, which have the same inputs, in one array for each input.

    Ragged inputs are padded at the end, with zeros or empty strings, to the longest. Masks are
    added where something was padded; those of inputs that were not are `model_side`'s.
    """
    if len(parts) == 1:
        return dict(parts[0])
    joined = {}
    for name in parts[0]:
        rows = [part[name] for part in parts]
        ragged = name in spec.ragged_names and len({array.shape[1:] for array in rows}) > 1
        joined[name] = _padded(rows) if ragged else np.concatenate(rows)
        if ragged:
            joined |= _masks(spec, name, rows, joined[name].shape)
    return joined


def _padded(parts: Sequence[Array]) -> Array:
    longest = [max(sizes) for sizes in zip(*(part.shape[1:] for part in parts), strict=True)]
    rows = sum(len(part) for part in parts)
    padded = np.zeros((rows, *longest), parts[0].dtype)
    if padded.dtype == object:
        padded.fill(b"")
    for part, where in zip(parts, _places(parts), strict=True):
        padded[where] = part
    return padded


def _places(parts: Sequence[Array]) -> list[tuple[slice, ...]]:
    """Return where each part lies in the padded array."""
    places, first = [], 0
    for part in parts:
        places.append((slice(first, first + len(part)), *(slice(size) for size in part.shape[1:])))
        first += len(part)
    return places


def _masks(
    spec: ModelSpec, name: str, parts: Sequence[Array], shape: tuple[int, ...]
) -> dict[str, Array]:
    """Return the mask of a padded input, if it has one: 1 where its rows are their own."""
    masks = {}
    for mask in spec.masks:
        if mask.of == name:
            dimensions = len(mask.tensor.dims) + 1
            array = np.zeros(shape[:dimensions], NUMPY_TYPES[mask.tensor.datatype])
            for where in _places(parts):
                array[where[:dimensions]] = 1
            masks[mask.tensor.name] = array
    return masks
