"""JSON's numbers, strings and booleans as arrays of one datatype, each element checked.

The work on elements is numpy's; nothing here loops over them.
"""

from __future__ import annotations

import math
import struct
from itertools import chain
from typing import Any

import numpy as np

from shared.datatypes import NUMPY_TYPES, Array
from shared.errors import BadRequest

BINARY_ONLY = frozenset({"FP16", "BF16"})
"""Datatypes that have no form in JSON."""
FEW_NUMBERS = 256
MAX_DATA_NESTING = 100
STRUCT_CODES = {
    "FP32": "f", "FP64": "d",
    "INT8": "b", "INT16": "h", "INT32": "i", "INT64": "q",
    "UINT8": "B", "UINT16": "H", "UINT32": "I", "UINT64": "Q",
}  # fmt: skip


class MixedList(list[Any]):
    """A list of JSON data, nested or flat, in which booleans may stand among numbers.

    fast: only of these is every element looked at; numpy takes a boolean among numbers for 0 or 1,
    and nearly no text names one.
    """


def names_booleans(text: bytes) -> bool:
    """Tell whether a boolean may stand anywhere in this JSON."""
    return b"true" in text or b"false" in text


def mixed(data: Any) -> Any:
    """Return `data`, a list as a MixedList."""
    return MixedList(data) if isinstance(data, list) else data


def unnested(data: Any, depth: int, where: str) -> Any:
    """Return nested lists flat when they are nested deeper than `depth`, as Triton reads them.

    The lengths of the lists do not matter then, only their order. Raises BadRequest for lists
    beside other things, and beyond MAX_DATA_NESTING.
    """
    levels, inner = 0, data
    while isinstance(inner, list):
        levels, inner = levels + 1, inner[0] if inner else None
    if levels <= depth:
        return data
    if levels > MAX_DATA_NESTING:
        raise BadRequest(
            f"{where}: JSON nesting depth exceeds maximum allowed limit ({MAX_DATA_NESTING})"
        )
    flat = data
    for _ in range(levels - 1):
        if not all(isinstance(item, list) for item in flat):
            raise BadRequest(f"{where}: the lists of data differ in depth")
        flat = list(chain.from_iterable(flat))
    return MixedList(flat) if isinstance(data, MixedList) else flat


def to_array(data: Any, datatype: str, where: str) -> Array:
    """Turn JSON data, nested or flat, into an array of `datatype`.

    A list that may hold booleans must be a MixedList. Raises BadRequest for ragged lists, elements
    of another type, and numbers out of range.
    """
    if datatype in BINARY_ONLY:
        raise BadRequest(f"{where}: datatype {datatype} travels as binary data only, not in JSON")
    if not isinstance(data, list):
        raise BadRequest(f"{where}: data must be a list, not {json_type(data)}")
    if datatype == "BYTES":
        return _strings(data, where)
    if _has_strings(data):
        raise _other_kind("strings", datatype, where)
    try:
        found = np.asarray(data)
    except (ValueError, OverflowError) as error:
        raise BadRequest(f"{where}: the lists of data differ in length or are too deep") from error
    if found.size == 0:
        return found.astype(NUMPY_TYPES[datatype])
    if isinstance(data, MixedList) and datatype != "BOOL" and found.dtype.kind in "iuf":
        flat = data if found.ndim == 1 else np.asarray(data, dtype=object).ravel()
        if bool in set(map(type, flat)):
            raise _other_kind("booleans", datatype, where)
    return _converted(found, data, datatype, where)


def small_numbers(data: Any, datatype: str, count: int) -> bytes | None:
    """Return `count` numbers of a short flat list as bytes.

    None for whatever is not so simple, or wrong: `to_array` converts it, or says what is wrong.
    fast: a fifth of what numpy costs. A MixedList is not so simple: booleans pass for numbers here.
    """
    code = STRUCT_CODES.get(datatype)
    if code is None or type(data) is not list or len(data) != count or count > FEW_NUMBERS:
        return None
    try:
        if math.isfinite(sum(data)):
            return struct.pack(f"<{count}{code}", *data)
    except (struct.error, TypeError, OverflowError):
        pass
    return None


def json_type(value: Any) -> str:
    """Return JSON's name for a value's type."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean"}
    return "null" if value is None else names.get(type(value), "a number")


def _has_strings(data: list[Any]) -> bool:
    """Tell whether there is a string anywhere in nested lists.

    subtle: numpy would give every element the room of the longest string.
    fast: a sum is the cheapest look at many numbers, a sixth of what numpy then needs for them
    (2026-11-21).
    """
    level: list[Any] = data
    while level:
        try:
            sum(level)
            return False
        except TypeError:
            if str in set(map(type, level)):
                return True
            level = list(chain.from_iterable(item for item in level if type(item) is list))
    return False


def _converted(found: Array, data: list[Any], datatype: str, where: str) -> Array:
    """Convert numpy's reading of `data` to `datatype`, after a check of its kind and range."""
    target = NUMPY_TYPES[datatype]
    if datatype == "BOOL":
        if found.dtype.kind != "b":
            raise _other_kind("other things", datatype, where)
        return found
    if found.dtype.kind not in "iuf":
        what = "booleans" if found.dtype.kind == "b" else "other things"
        raise _other_kind(what, datatype, where)
    if target.kind == "f":
        return _floats(found, target, where)
    if found.dtype.kind == "f":
        found = _whole_numbers(data, datatype, where)
    limits = np.iinfo(target)
    if int(found.min()) < limits.min or int(found.max()) > limits.max:
        raise BadRequest(f"{where}: data has numbers out of the range of {datatype}")
    return found.astype(target)


def _other_kind(what: str, datatype: str, where: str) -> BadRequest:
    if datatype == "BOOL":
        return BadRequest(f"{where}: data must be booleans for BOOL")
    return BadRequest(f"{where}: data has {what} where numbers of {datatype} belong")


def _floats(found: Array, target: np.dtype[Any], where: str) -> Array:
    if found.dtype.kind != "f":
        return found.astype(target)
    with np.errstate(over="ignore"):
        array = found.astype(target)
        # fast: a sum meets any infinity at half the price of isfinite(), but may overflow itself.
        suspicious = not math.isfinite(array.sum())
    if suspicious and not np.isfinite(array).all():
        raise BadRequest(f"{where}: data has numbers too large for {target.name}")
    return array


def _whole_numbers(data: list[Any], datatype: str, where: str) -> Array:
    """Read integers that numpy took for floats because they mix signs with 64 bits (rare)."""
    found = np.asarray(data, dtype=object)
    if not all(type(item) is int for item in found.ravel()):
        raise BadRequest(
            f"{where}: data has fractions, or numbers beyond 64 bits, where {datatype} belongs"
        )
    return found


def _strings(data: list[Any], where: str) -> Array:
    found = np.asarray(data, dtype=object) if data else np.empty(0, dtype=object)
    if not all(isinstance(item, str) for item in found.ravel()):
        raise BadRequest(f"{where}: data of BYTES must be strings, in lists of the same length")
    return found
