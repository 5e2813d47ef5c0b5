"""The Open Inference Protocol's JSON body: bytes in, checked tensors out, and back.

The work on elements is numpy's and orjson's; nothing here loops over them.
"""

from __future__ import annotations

import math
import struct
from typing import Any, NamedTuple

import numpy as np
import orjson

from shared.datatypes import DATATYPES, NUMPY_TYPES, Array, to_bytes
from shared.errors import BadRequest
from shared.messages import Tensor
from shared.model_spec import ModelSpec, TensorSpec

MAX_NESTING = 100
BINARY_ONLY = {"FP16", "BF16"}
_ONLY_INTEGERS = frozenset({int})
FEW_NUMBERS = 256
STRUCT_CODES = {
    "FP32": "f", "FP64": "d",
    "INT8": "b", "INT16": "h", "INT32": "i", "INT64": "q",
    "UINT8": "B", "UINT16": "H", "UINT32": "I", "UINT64": "Q",
}  # fmt: skip
TENSOR_KEYS = {"data", "input_tensor"}


class InferBody(NamedTuple):
    """A checked request body: inputs in the model's order, wanted outputs (empty for all)."""

    id: str | None
    inputs: tuple[Tensor, ...]
    outputs: tuple[str, ...]


def parse_infer(raw: bytes, spec: ModelSpec) -> InferBody:
    """Check a v2 JSON body against the model; raises BadRequest saying what and where."""
    body = load_object(raw)
    request_id = body.get("id")
    if request_id is not None and not isinstance(request_id, str):
        raise BadRequest(f'"id" must be a string, not {json_type(request_id)}')
    check_parameters(body.get("parameters"), "the request")
    items = body.get("inputs")
    if not isinstance(items, list):
        raise BadRequest(f'"inputs" must be a list of tensors, not {json_type(items)}')
    inputs = _inputs(items, spec, names_booleans=b"true" in raw or b"false" in raw)
    return InferBody(request_id, inputs, _outputs(body.get("outputs"), spec))


def load_object(raw: bytes) -> dict[str, Any]:
    """Decode a JSON object; raises BadRequest for anything else."""
    if not raw:
        raise BadRequest("the body is empty, a JSON object was expected")
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"the body is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise BadRequest(f"the body must be a JSON object, not {json_type(body)}")
    # The brackets bound the depth: nearly every body is cleared by counting them.
    if raw.count(b"[") + raw.count(b"{") > MAX_NESTING:
        _check_nesting(body)
    return body


def check_parameters(parameters: Any, where: str) -> dict[str, str | int | float | bool]:
    """Return `parameters` when it is an object of strings, numbers and booleans (or absent)."""
    if parameters is None:
        return {}
    if not isinstance(parameters, dict) or not all(
        isinstance(value, str | int | float | bool) for value in parameters.values()
    ):
        raise BadRequest(
            f'"parameters" of {where} must be an object of strings, numbers and booleans'
        )
    return parameters


def to_array(data: Any, datatype: str, where: str, *, names_booleans: bool = True) -> Array:
    """Turn JSON data, nested or flat, into an array of `datatype`.

    `names_booleans` False says that the JSON holds no boolean at all, which saves a look at every
    element: numpy takes a boolean among numbers for 0 or 1. Raises BadRequest for ragged lists,
    elements of another type, and numbers out of range.
    """
    if datatype in BINARY_ONLY:
        raise BadRequest(f"{where}: datatype {datatype} travels as binary data only, not in JSON")
    if not isinstance(data, list):
        raise BadRequest(f"{where}: data must be a list, not {json_type(data)}")
    if datatype == "BYTES":
        return _strings(data, where)
    try:
        found = np.asarray(data)
    except (ValueError, OverflowError) as error:
        raise BadRequest(f"{where}: the lists of data differ in length or are too deep") from error
    if found.size == 0:
        return found.astype(NUMPY_TYPES[datatype])
    if names_booleans and found.dtype.kind in "iuf":
        _refuse_booleans(data, datatype, where)
    return _converted(found, data, datatype, where)


def small_numbers(data: Any, datatype: str, count: int) -> bytes | None:
    """Return `count` numbers of a short flat list as bytes, at a fifth of what numpy costs.

    None for whatever is not so simple, or wrong: `to_array` converts it, or says what is wrong.
    The list must hold no booleans, which would pass for numbers.
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


def json_output(tensor: Tensor) -> dict[str, Any]:
    """Return one output as the protocol's JSON, its data flat and row-major."""
    if tensor.datatype in BINARY_ONLY:
        raise BadRequest(
            f"output {tensor.name!r} has datatype {tensor.datatype}, which JSON cannot carry"
        )
    array = tensor.array().ravel()
    data: Any = array
    if tensor.datatype == "BYTES":
        data = [item.decode("utf-8", "replace") for item in array]
    return {
        "name": tensor.name,
        "datatype": tensor.datatype,
        "shape": list(tensor.shape),
        "data": data,
    }


def check_shape(shape: tuple[int, ...], declared: TensorSpec, spec: ModelSpec, where: str) -> None:
    """Raise BadRequest unless `shape` fits the declared one and the batch limit."""
    wanted = spec.full_shape(declared)
    if len(shape) != len(wanted):
        raise BadRequest(
            f"{where}: shape {list(shape)} has {len(shape)} dimensions, the model wants {wanted}"
        )
    for got, want in zip(shape, wanted, strict=True):
        if want not in (got, -1):
            raise BadRequest(f"{where}: shape {list(shape)}, the model wants {wanted}")
    if 0 in shape:
        raise BadRequest(f"{where}: shape {list(shape)} has no elements")
    if spec.batched and shape[0] > spec.max_batch_size:
        raise BadRequest(
            f"inference request batch-size must be <= {spec.max_batch_size} for '{spec.name}', "
            f"{where} has {shape[0]} rows"
        )


def json_type(value: Any) -> str:
    """Return JSON's name for a value's type."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean"}
    return "null" if value is None else names.get(type(value), "a number")


def _inputs(items: list[Any], spec: ModelSpec, *, names_booleans: bool) -> tuple[Tensor, ...]:
    declared = spec.inputs_by_name
    found: dict[str, Tensor] = {}
    for index, item in enumerate(items):
        name = item.get("name") if isinstance(item, dict) else None
        if not isinstance(name, str):
            raise BadRequest(f"inputs[{index}] must be an object with a name")
        if name not in declared:
            raise BadRequest(
                f"unknown input {name!r}: the inputs of '{spec.name}' are {sorted(declared)}"
            )
        if name in found:
            raise BadRequest(f"input {name!r} is given twice")
        found[name] = _input(item, declared[name], spec, names_booleans)
    if len(found) < len(declared):
        missing = next(name for name in declared if name not in found)
        raise BadRequest(f"missing input {missing!r}: '{spec.name}' wants {list(declared)}")
    if spec.batched and len(found) > 1:
        rows = {tensor.shape[0] for tensor in found.values()}
        if len(rows) > 1:
            raise BadRequest(f"all inputs must have the same batch size, not {sorted(rows)}")
    return tuple([found[name] for name in declared])


def _input(
    item: dict[str, Any], declared: TensorSpec, spec: ModelSpec, names_booleans: bool
) -> Tensor:
    where = f"input {declared.name!r}"
    datatype, shape = item.get("datatype"), item.get("shape")
    if "parameters" in item:
        check_parameters(item["parameters"], where)
    if datatype != declared.datatype:
        known = isinstance(datatype, str) and datatype in DATATYPES | BINARY_ONLY
        raise BadRequest(
            f"{where}: datatype {datatype}, the model wants {declared.datatype}"
            if known
            else f"{where}: unknown datatype {datatype!r}, the model wants {declared.datatype}"
        )
    if (
        not isinstance(shape, list)
        or not _ONLY_INTEGERS.issuperset(map(type, shape))
        or min(shape, default=0) < 0
    ):
        raise BadRequest(f"{where}: shape must be a list of numbers that are not negative")
    check_shape(tuple(shape), declared, spec, where)
    if "data" not in item:
        raise BadRequest(f"{where}: data is missing")
    count = math.prod(shape)
    if not names_booleans:
        packed = small_numbers(item["data"], datatype, count)
        if packed is not None:
            return Tensor(declared.name, datatype, tuple(shape), packed)
    array = to_array(item["data"], datatype, where, names_booleans=names_booleans)
    if array.size != count:
        raise BadRequest(f"{where}: data has {array.size} elements, shape {shape} wants {count}")
    if array.ndim != 1 and list(array.shape) != shape:
        raise BadRequest(f"{where}: data is nested as {list(array.shape)}, not as shape {shape}")
    return Tensor(declared.name, datatype, tuple(shape), to_bytes(array))


def _outputs(items: Any, spec: ModelSpec) -> tuple[str, ...]:
    if items is None:
        return ()
    if not isinstance(items, list):
        raise BadRequest(f'"outputs" must be a list, not {json_type(items)}')
    known = [tensor.name for tensor in spec.outputs]
    wanted: list[str] = []
    for index, item in enumerate(items):
        name = item.get("name") if isinstance(item, dict) else None
        if not isinstance(name, str):
            raise BadRequest(f"outputs[{index}] must be an object with a name")
        if name not in known:
            raise BadRequest(f"unknown output {name!r}: the outputs of '{spec.name}' are {known}")
        if name in wanted:
            raise BadRequest(f"output {name!r} is requested twice")
        check_parameters(item.get("parameters"), f"output {name!r}")
        wanted.append(name)
    return tuple(wanted)


def _converted(found: Array, data: list[Any], datatype: str, where: str) -> Array:
    """Check kind and range of what numpy read, then convert it."""
    target = NUMPY_TYPES[datatype]
    if datatype == "BOOL":
        if found.dtype.kind != "b":
            raise BadRequest(f"{where}: data must be booleans for BOOL")
        return found
    if found.dtype.kind not in "iuf":
        what = {"b": "booleans", "U": "strings"}.get(found.dtype.kind, "other things")
        raise BadRequest(f"{where}: data has {what} where numbers of {datatype} belong")
    if target.kind == "f":
        return _floats(found, target, where)
    if found.dtype.kind == "f":
        found = _whole_numbers(data, datatype, where)
    limits = np.iinfo(target)
    if int(found.min()) < limits.min or int(found.max()) > limits.max:
        raise BadRequest(f"{where}: data has numbers out of the range of {datatype}")
    return found.astype(target)


def _refuse_booleans(data: list[Any], datatype: str, where: str) -> None:
    if datatype != "BOOL" and bool in set(map(type, np.asarray(data, dtype=object).ravel())):
        raise BadRequest(f"{where}: data has booleans where numbers of {datatype} belong")


def _floats(found: Array, target: np.dtype[Any], where: str) -> Array:
    if found.dtype.kind != "f":
        return found.astype(target)
    with np.errstate(over="ignore"):
        array = found.astype(target)
        # The sum meets any infinity, at half the price of isfinite(); it may also overflow itself.
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


def _check_nesting(body: dict[str, Any]) -> None:
    """Refuse deep nesting anywhere but in tensors, whose depth numpy limits to 64."""
    level: list[Any] = [body]
    for _ in range(MAX_NESTING):
        level = [
            child
            for parent in level
            for key, child in (parent.items() if isinstance(parent, dict) else enumerate(parent))
            if isinstance(child, dict | list) and key not in TENSOR_KEYS
        ]
        if not level:
            return
    raise BadRequest(f"the body is nested deeper than {MAX_NESTING} levels")
