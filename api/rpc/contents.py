"""A tensor's elements in protobuf's typed fields, `InferTensorContents`, as raw tensor data.

Apart from `requests`: a subject of its own, of one tensor and no request.
Source: https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/open_inference_grpc.proto
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from tritonclient.grpc import service_pb2 as proto

from shared.datatypes import NUMPY_TYPES, Array, to_bytes
from shared.errors import BadRequest, shown

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
WIDE_TYPES = {"uint_contents": np.dtype(np.uint32), "int_contents": np.dtype(np.int32)}
"""The types at which fields of several datatypes are read."""


def typed_data(tensor: proto.ModelInferRequest.InferInputTensor, where: str) -> bytes:
    """Return an input's typed contents as raw data; raises BadRequest.

    A datatype that does not exist is refused later, by `check_inputs`.
    """
    datatype, shape = tensor.datatype, list(tensor.shape[: MAX_DIMENSIONS + 1])
    if datatype not in NUMPY_TYPES:
        return b""
    if datatype not in FIELDS:
        raise BadRequest(f"{where}: {datatype} has no typed contents, send raw_input_contents")
    given = [field.name for field, _ in tensor.contents.ListFields()]
    if not given and 0 in shape:
        return b""
    if given != [FIELDS[datatype]]:
        raise BadRequest(
            f"{where}: {datatype} belongs into {FIELDS[datatype]}, and nothing else, not {given}"
        )
    elements = getattr(tensor.contents, given[0])
    if len(elements) != math.prod(shape):
        raise BadRequest(
            f"{where}: {given[0]} has {len(elements)} elements, "
            f"shape {shown(shape)} wants {math.prod(shape)}"
        )
    return to_bytes(_array(elements, given[0], datatype, where))


def _array(elements: Any, field: str, datatype: str, where: str) -> Array:
    if datatype == "BYTES":
        return np.array(elements, dtype=object)
    wanted = NUMPY_TYPES[datatype]
    found: Array = np.fromiter(elements, WIDE_TYPES.get(field, wanted), len(elements))
    if field in WIDE_TYPES:
        limits = np.iinfo(wanted)
        if found.min() < limits.min or found.max() > limits.max:
            raise BadRequest(f"{where}: an element is beyond what {datatype} holds")
    return found.astype(wanted, copy=False)
