"""The Open Inference Protocol's JSON body: bytes in, checked tensors out, and back.

The work on elements is numpy's and orjson's; nothing here loops over them.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import orjson

from api.json_arrays import BINARY_ONLY, json_type, small_numbers, to_array
from shared.datatypes import DATATYPES, to_bytes
from shared.errors import BadRequest
from shared.messages import Tensor
from shared.model_spec import ModelSpec, TensorSpec

MAX_NESTING = 100
_ONLY_INTEGERS = frozenset({int})
TENSOR_KEYS = {"data", "input_tensor"}


class InferBody(NamedTuple):
    """A checked request body: inputs in the model's order, wanted outputs (empty for all)."""

    id: str | None
    inputs: tuple[Tensor, ...]
    outputs: tuple[str, ...]
    parameters: dict[str, str | int | float | bool]


def parse_infer(raw: bytes, spec: ModelSpec) -> InferBody:
    """Check a v2 JSON body against the model; raises BadRequest saying what and where."""
    body = load_object(raw)
    request_id = body.get("id")
    if request_id is not None and not isinstance(request_id, str):
        raise BadRequest(f'"id" must be a string, not {json_type(request_id)}')
    parameters = check_parameters(body.get("parameters"), "the request")
    items = body.get("inputs")
    if not isinstance(items, list):
        raise BadRequest(f'"inputs" must be a list of tensors, not {json_type(items)}')
    inputs = _inputs(items, spec, names_booleans=b"true" in raw or b"false" in raw)
    return InferBody(request_id, inputs, _outputs(body.get("outputs"), spec), parameters)


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
