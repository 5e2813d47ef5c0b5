"""The Open Inference Protocol's HTTP body: JSON, and binary tensor data behind it; and back.

The work on elements is numpy's and orjson's; nothing here loops over them.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import orjson

from api.payloads.binary_tensors import Chunks, raw_input
from api.payloads.infer_request import (
    GivenInput,
    InferBody,
    check_count,
    check_id,
    check_inputs,
    check_outputs,
    check_parameters,
    class_count,
)
from api.payloads.json_arrays import BINARY_ONLY, json_type, mixed, names_booleans
from shared.errors import BadRequest, shown
from shared.messages import Buffer, RequestedOutput, Tensor
from shared.model_spec import ModelSpec

MAX_NESTING = 100
TENSOR_KEYS = {"data", "input_tensor"}


def parse_infer(raw: Buffer, spec: ModelSpec, json_length: int | None = None) -> InferBody:
    """Check a v2 body against the model; raises BadRequest naming mistake and place.

    Of the body `json_length` bytes are JSON, the rest is tensor data; None when all of it is JSON,
    0 when none is: a raw request.
    """
    if json_length == 0:
        return InferBody(None, (raw_input(raw, spec),), (), {}, binary=True)
    if json_length is None:
        text, rest = bytes(raw), memoryview(b"")  # bytes of bytes is no copy
    else:
        view = memoryview(raw)
        text, rest = bytes(view[:json_length]), view[json_length:]
    body, chunks = load_object(text), Chunks(rest)
    request_id = check_id(body.get("id"))
    parameters = check_parameters(body.get("parameters"), "the request")
    binary = _flag(parameters, "binary_data_output", "the request")
    given = _given(body.get("inputs"), chunks, may_mix=names_booleans(text))
    chunks.finish()
    outputs = _wanted(body.get("outputs"))
    check_outputs(outputs, binary, spec)
    return InferBody(request_id, check_inputs(given, spec), outputs, parameters, binary)


def load_object(raw: bytes, tensor_keys: Collection[str] = TENSOR_KEYS) -> dict[str, Any]:
    """Decode a JSON object, nested as it likes under `tensor_keys` only; raises BadRequest."""
    if not raw:
        raise BadRequest("the body is empty, a JSON object was expected")
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"the body is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise BadRequest(f"the body must be a JSON object, not {json_type(body)}")
    # fast: the number of brackets bounds the depth, and nearly every body has few.
    if raw.count(b"[") + raw.count(b"{") > MAX_NESTING:
        _check_nesting(body, tensor_keys)
    return body


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


def binary_output(tensor: Tensor) -> dict[str, Any]:
    """Return one output as the protocol's JSON whose data stands behind the JSON."""
    return {
        "name": tensor.name,
        "datatype": tensor.datatype,
        "shape": list(tensor.shape),
        "parameters": {"binary_data_size": len(tensor.data)},
    }


def _given(items: Any, chunks: Chunks, *, may_mix: bool) -> list[GivenInput]:
    if not isinstance(items, list):
        raise BadRequest(f'"inputs" must be a list of tensors, not {json_type(items)}')
    check_count(len(items), "inputs")
    found = []
    for index, item in enumerate(items):
        name = item.get("name") if isinstance(item, dict) else None
        if not isinstance(name, str):
            raise BadRequest(f"inputs[{index}] must be an object with a name")
        raw = None
        if "parameters" in item:
            where = f"input {shown(name)}"
            parameters = check_parameters(item["parameters"], where)
            if "binary_data_size" in parameters:
                if "data" in item:
                    raise BadRequest(f'{where} has both "data" and "binary_data_size"')
                raw = chunks.take(parameters["binary_data_size"], where)
        data = mixed(item.get("data")) if may_mix else item.get("data")
        found.append(GivenInput(name, item.get("datatype"), item.get("shape"), data, raw))
    return found


def _wanted(items: Any) -> tuple[RequestedOutput, ...]:
    if items is None:
        return ()
    if not isinstance(items, list):
        raise BadRequest(f'"outputs" must be a list, not {json_type(items)}')
    check_count(len(items), "outputs")
    wanted = []
    for index, item in enumerate(items):
        name = item.get("name") if isinstance(item, dict) else None
        if not isinstance(name, str):
            raise BadRequest(f"outputs[{index}] must be an object with a name")
        where = f"output {shown(name)}"
        parameters = check_parameters(item.get("parameters"), where)
        is_binary = _flag(parameters, "binary_data", where)
        wanted.append(RequestedOutput(name, is_binary, class_count(parameters, where)))
    return tuple(wanted)


def _flag(parameters: Any, name: str, where: str) -> bool:
    value = parameters.get(name, False)
    if type(value) is not bool:
        raise BadRequest(f'{where}: "{name}" must be true or false, not {shown(value)}')
    return value


def _check_nesting(body: dict[str, Any], tensor_keys: Collection[str]) -> None:
    """Refuse deep nesting anywhere but in tensors, whose depth is looked at with their shape."""
    level: list[Any] = [body]
    for _ in range(MAX_NESTING):
        level = [
            child
            for parent in level
            for key, child in (parent.items() if isinstance(parent, dict) else enumerate(parent))
            if isinstance(child, dict | list) and key not in tensor_keys
        ]
        if not level:
            return
    raise BadRequest(f"the body is nested deeper than {MAX_NESTING} levels")
