"""A tensor's elements in protobuf's typed fields, `InferTensorContents`, as raw tensor data.

Apart from `requests`: a subject of its own, of one tensor and no request.
Source: https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/open_inference_grpc.proto
"""

from __future__ import annotations

import math
from types import MappingProxyType
from typing import Any

import numpy as np
from tritonclient.grpc import service_pb2 as proto

from api.rpc.reading import GOES_ON, LONGEST_VARINT, Packed
from shared.datatypes import NUMPY_TYPES, Array, to_bytes
from shared.errors import BadRequest, shown
from shared.messages import Buffer

NOTHING_PACKED: Packed = MappingProxyType({})
ANY_COUNT = 2**63
MAX_DIMENSIONS = 1024
"""A longer shape is refused later, by `check_inputs`."""
FIELDS = {
    "BOOL": "bool_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
"""The field of each datatype's elements; FP16 and BF16 have none."""
FIXED_FIELDS = ("fp32_contents", "fp64_contents")
"""The fields whose packed elements are as raw data has them."""
PART_BYTES = 2**20
WIDE_TYPES = {"uint_contents": np.dtype(np.uint32), "int_contents": np.dtype(np.int32)}
"""The types at which fields of several datatypes are read."""


def typed_data(
    tensor: proto.ModelInferRequest.InferInputTensor,
    where: str,
    packed: Packed = NOTHING_PACKED,
    most: int = ANY_COUNT,
) -> Buffer:
    """Return an input's typed contents, or what was left `packed` of them, as raw data.

    Raises BadRequest, and so for more than `most` packed elements. A datatype that does not exist
    is refused later, by `check_inputs`.
    """
    datatype, shape = tensor.datatype, list(tensor.shape[: MAX_DIMENSIONS + 1])
    if datatype not in NUMPY_TYPES:
        return b""
    if datatype not in FIELDS:
        raise BadRequest(f"{where}: {datatype} has no typed contents, send raw_input_contents")
    given = [*(field.name for field, _ in tensor.contents.ListFields()), *packed]
    if not given and 0 in shape:
        return b""
    if given != [FIELDS[datatype]]:
        raise BadRequest(
            f"{where}: {datatype} belongs into {FIELDS[datatype]}, and nothing else, not {given}"
        )
    if packed:
        return _unpacked(packed[given[0]], given[0], tensor, where, most)
    elements = getattr(tensor.contents, given[0])
    _check_count(len(elements), given[0], shape, where)
    return to_bytes(_array(elements, given[0], datatype, where))


def _check_count(count: int, field: str, shape: list[int], where: str) -> None:
    if count != math.prod(shape):
        raise BadRequest(
            f"{where}: {field} has {count} elements, shape {shown(shape)} wants {math.prod(shape)}"
        )


def _array(elements: Any, field: str, datatype: str, where: str) -> Array:
    if datatype == "BYTES":
        return np.array(elements, dtype=object)
    wanted = NUMPY_TYPES[datatype]
    found: Array = np.fromiter(elements, WIDE_TYPES.get(field, wanted), len(elements))
    return _narrowed(found, field, datatype, where)


def _narrowed(found: Array, field: str, datatype: str, where: str) -> Array:
    wanted = NUMPY_TYPES[datatype]
    if field in WIDE_TYPES:
        limits = np.iinfo(wanted)
        if found.min() < limits.min or found.max() > limits.max:
            raise BadRequest(f"{where}: an element is beyond what {datatype} holds")
    return found.astype(wanted, copy=False)


def _unpacked(pieces: list[memoryview], field: str, tensor: Any, where: str, most: int) -> Buffer:
    """Return packed numbers as raw data: those of fixed size are that already.

    numpy lets other threads run meanwhile, which protobuf does not.
    """
    packed = pieces[0] if len(pieces) == 1 else memoryview(b"".join(pieces))
    octets, datatype = np.frombuffer(packed, np.uint8), tensor.datatype
    is_fixed = field in FIXED_FIELDS
    size = NUMPY_TYPES[datatype].itemsize
    count = len(packed) // size if is_fixed else int(np.count_nonzero(octets < GOES_ON))
    if count > most:
        raise BadRequest(
            f"{where}: {field} has {count} elements, the model's largest request has {most}"
        )
    _check_count(count, field, list(tensor.shape[: MAX_DIMENSIONS + 1]), where)
    if is_fixed:
        if len(packed) % size:
            raise BadRequest(f"{where}: a packed number is cut short")
        return packed
    found = np.empty(count, WIDE_TYPES.get(field, NUMPY_TYPES[datatype]))
    _read_varints(octets, found, where)
    narrow = np.ascontiguousarray(_narrowed(found, field, datatype, where))
    return narrow.view(np.uint8).data


def _read_varints(octets: Array, found: Array, where: str) -> None:
    """Fill `found` with the numbers that stand in some bytes; raises BadRequest.

    A part at a time, for what is computed meanwhile is many times as large.
    """
    done = 0
    while octets.size:
        ends = np.flatnonzero(octets[:PART_BYTES] < GOES_ON)
        lengths = np.diff(ends, prepend=-1)
        if not ends.size or lengths.max() > LONGEST_VARINT:
            raise BadRequest(f"{where}: a packed number is cut short or too long")
        values = np.zeros(ends.size, np.uint64)
        for place in range(int(lengths.max())):
            here = np.flatnonzero(lengths > place)
            part = octets[ends[here] - lengths[here] + 1 + place] & (GOES_ON - 1)
            values[here] |= part.astype(np.uint64) << np.uint64(7 * place)
        found[done : done + ends.size] = values.astype(found.dtype)
        done += ends.size
        octets = octets[ends[-1] + 1 :]
