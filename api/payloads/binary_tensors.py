"""The binary data extension: tensors are cut from the body by their sizes, and checked.

Source: https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

from shared.datatypes import NUMPY_TYPES
from shared.errors import BadRequest, shown
from shared.messages import Buffer, Tensor
from shared.model_spec import ModelSpec

HEADER = "Inference-Header-Content-Length"
HEADER_VARIABLE = "HTTP_INFERENCE_HEADER_CONTENT_LENGTH"
MAX_DIGITS = 18
LENGTH = struct.Struct("<I")
"""The length in front of each BYTES element."""


def header_length(environ: Mapping[str, Any], body_bytes: int) -> int | None:
    """Return the length of the JSON in bytes, None without the header; raises BadRequest."""
    value = environ.get(HEADER_VARIABLE)
    if value is None:
        return None
    if not (value.isascii() and value.isdigit() and len(value) <= MAX_DIGITS):
        raise BadRequest(f"{HEADER} {shown(value)} must be a number of bytes")
    length = int(value)
    if length > body_bytes:
        raise BadRequest(f"{HEADER} is {length}, the body has {body_bytes} bytes")
    return length


class Chunks:
    """The bytes behind the JSON, taken from the front by each binary input in turn."""

    def __init__(self, data: memoryview) -> None:
        """Start at the first byte."""
        self._data = data
        self._position = 0

    def take(self, size: Any, where: str) -> memoryview:
        """Return the next `size` bytes, without a copy; raises BadRequest."""
        if type(size) is not int or size < 0:
            raise BadRequest(
                f'{where}: "binary_data_size" must be a whole number, not {shown(size)}'
            )
        left = len(self._data) - self._position
        if size > left:
            raise BadRequest(
                f'{where}: "binary_data_size" is {size}, only {left} bytes of the body are left'
            )
        self._position += size
        return self._data[self._position - size : self._position]

    def finish(self) -> None:
        """Raise BadRequest when there are bytes that no input has taken."""
        left = len(self._data) - self._position
        if left:
            raise BadRequest(f"{left} bytes stand behind the last binary input of the body")


def checked_binary(raw: Buffer, datatype: str, shape: tuple[int, ...], where: str) -> Buffer:
    """Return `raw` when it is a tensor of this datatype and shape; raises BadRequest."""
    count = math.prod(shape)
    if datatype == "BYTES":
        _check_elements(raw, count, where)
        return raw
    wanted = count * NUMPY_TYPES[datatype].itemsize
    if len(raw) != wanted:
        raise BadRequest(
            f"{where}: {len(raw)} bytes of binary data, {datatype} of shape {shown(list(shape))} "
            f"has {wanted}"
        )
    if datatype == "BOOL" and np.frombuffer(raw, np.uint8).max(initial=0) > 1:
        raise BadRequest(f"{where}: BOOL is one byte each, 0 or 1")
    return raw


def raw_input(raw: Buffer, spec: ModelSpec) -> Tensor:
    """Return the body of a raw request as the model's only input, with a batch of 1.

    A dimension of -1 is what the number of bytes makes it; BYTES are one element, the body itself.
    Raises BadRequest where the model does not allow that, in Triton's words.
    """
    if len(spec.inputs) != 1:
        raise BadRequest(
            "Raw request must only have 1 input (found 1) to be deduced but got "
            f"{len(spec.inputs)} inputs in '{spec.name}' model configuration"
        )
    declared = spec.inputs[0]
    where = f"input {declared.name!r}"
    if declared.datatype == "BYTES":
        if any(dim != 1 for dim in declared.dims):
            raise BadRequest(
                f"For BYTE datatype raw input {declared.name!r}, the model must have input shape "
                f"[1], not {list(declared.dims)}"
            )
        data: Buffer = LENGTH.pack(len(raw)) + bytes(raw)
        dims = declared.dims
    else:
        dims, data = _fitted(declared.dims, declared.datatype, len(raw), where), raw
    shape = (1, *dims) if spec.batched else dims
    return Tensor(
        declared.name, declared.datatype, shape,
        checked_binary(data, declared.datatype, shape, where),
    )  # fmt: skip


def _fitted(dims: tuple[int, ...], datatype: str, size: int, where: str) -> tuple[int, ...]:
    """Return `dims` with the one that is -1 computed from the size in bytes."""
    if dims.count(-1) > 1:
        raise BadRequest(
            f"The shape of the raw {where} can not be deduced because there are "
            f"more than one variable-sized dimension: {list(dims)}"
        )
    known = math.prod(dim for dim in dims if dim != -1) * NUMPY_TYPES[datatype].itemsize
    if -1 in dims and (size == 0 or size % known):
        raise BadRequest(f"{where}: {size} bytes are no whole number of {known} bytes each")
    return tuple([size // known if dim == -1 else dim for dim in dims])


def _check_elements(raw: Buffer, count: int, where: str) -> None:
    """Check that `raw` is `count` BYTES elements, from length to length; decode none of them."""
    end, position, steps = len(raw), 0, 0
    while position + LENGTH.size <= end and steps < count:
        position += LENGTH.size + LENGTH.unpack_from(raw, position)[0]
        steps += 1
    if position != end or steps != count:
        raise BadRequest(f"{where}: {end} bytes of binary data are not {count} BYTES elements")
