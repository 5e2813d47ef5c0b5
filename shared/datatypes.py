"""The Open Inference Protocol's datatypes, as numpy knows them.

BYTES elements travel as the protocol's binary form: each a 4-byte little-endian length, then the
bytes (https://github.com/kserve/open-inference-protocol, binary tensor data extension).
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import numpy.typing as npt
from ml_dtypes import bfloat16

from shared.errors import BadMessage

Array = npt.NDArray[Any]

NUMPY_TYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BF16": np.dtype(bfloat16),
    "BYTES": np.dtype(object),
}
DATATYPES = frozenset(NUMPY_TYPES)
_NAMES = {numpy_type: name for name, numpy_type in NUMPY_TYPES.items()}


def datatype_of(array: Array) -> str:
    """Return the protocol's name for an array's dtype; strings count as BYTES.

    Raises KeyError for a dtype the protocol does not have (complex numbers, dates).
    """
    if array.dtype.kind in "SU":
        return "BYTES"
    return _NAMES.get(array.dtype) or _NAMES[array.dtype.newbyteorder("<")]


def to_bytes(array: Array) -> bytes:
    """Encode an array row-major and little-endian; object and string arrays as BYTES."""
    if array.dtype.kind in "OSU":
        return b"".join(_element(item) for item in array.ravel())
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    return array.tobytes()


def from_bytes(data: bytes | memoryview, datatype: str, shape: tuple[int, ...]) -> Array:
    """Decode `to_bytes`' bytes into a read-only array; BYTES into an object array of bytes.

    Raises BadMessage when data and shape do not fit each other.
    """
    try:
        if min(shape, default=0) < 0:  # numpy would take it for "whatever fits"
            raise ValueError("a negative dimension")
        if datatype == "BYTES":
            array: Array = np.array(_elements(data), dtype=object).reshape(shape)
            array.flags.writeable = False
            return array
        return np.frombuffer(data, NUMPY_TYPES[datatype]).reshape(shape)
    except (ValueError, KeyError, TypeError, OverflowError, struct.error) as error:
        raise BadMessage(f"the data is no {datatype} tensor of shape {list(shape)}") from error


def _element(item: object) -> bytes:
    raw = item if isinstance(item, bytes) else str(item).encode()
    return struct.pack("<I", len(raw)) + raw


def _elements(data: bytes | memoryview) -> list[bytes]:
    found, position = [], 0
    while position < len(data):
        (size,) = struct.unpack_from("<I", data, position)
        position += 4
        if position + size > len(data):
            raise ValueError("a BYTES element reaches past the end")
        found.append(bytes(data[position : position + size]))
        position += size
    return found
