"""Version 1's JSON body: rows or columns in, checked tensors out, and back.

A shape is what the nesting makes it. In rows each instance is one step along the first dimension
of every input, and so is each prediction of every output: of a model with a batch dimension its
batch, of one without it the first of its dims (TensorFlow Serving's json_tensor.cc knows no other).
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

import numpy as np

from api.payloads.infer_request import check_shape
from api.payloads.json_arrays import BINARY_ONLY, json_type, mixed, names_booleans, to_array
from api.payloads.v2_json import load_object
from shared.datatypes import Array, to_bytes
from shared.errors import BadRequest, shown
from shared.inputs.pictures import picture_input
from shared.messages import Buffer, InferResult, Tensor
from shared.model_spec import ModelSpec, TensorSpec

Form = Literal["predictions", "outputs"]
ReadPictures = Callable[[Sequence[Buffer], ModelSpec], Tensor]
FORMS: dict[str, Form] = {"instances": "predictions", "inputs": "outputs"}
"""The key of the answer for the key of the request."""
SIGNATURE = "serving_default"
BYTES_SUFFIX = "_bytes"
"""Outputs whose names end so are base64 whatever is in them."""


class Encoder(Protocol):
    """Makes a model's inputs of texts: `TokenizerCache`."""

    def encode(self, texts: list[str], spec: ModelSpec) -> tuple[tuple[Tensor, ...], list[bool]]:
        """Return the inputs, and which texts were cut."""
        ...


def parse_predict(
    raw: bytes, spec: ModelSpec, tokenizers: Encoder, pictures: ReadPictures = picture_input
) -> tuple[Form, tuple[Tensor, ...]]:
    """Check a body against the model; return the form of the answer and the model's inputs.

    `pictures` makes the tensor of those in base64. Raises BadRequest saying what and where.
    """
    body = load_object(raw, FORMS.keys())
    if body.get("signature_name", SIGNATURE) != SIGNATURE:
        raise BadRequest(f'"signature_name" must be "{SIGNATURE}" or absent: there is no other')
    asked = [key for key in FORMS if key in body]
    if len(asked) != 1:
        raise BadRequest('the body must have "instances" (rows) or "inputs" (columns), one of them')
    _check_outputs(spec)
    form, value = FORMS[asked[0]], body[asked[0]]
    if form == "predictions":
        _check_rows(value, spec)
        if not value:
            return form, spec.no_rows(spec.inputs)
    if spec.input_kind == "text" and _all_texts(value):
        return form, tokenizers.encode(value, spec)[0]
    columns = _columns_of_rows(value, spec) if form == "predictions" else _columns(value, spec)
    if names_booleans(raw):
        columns = {name: mixed(data) for name, data in columns.items()}
    inputs = tuple(
        _tensor(columns[item.name], item, spec, pictures)
        for item in spec.inputs
        if item.name in columns
    )
    rows = {tensor.shape[0] for tensor in inputs}
    if spec.batched and len(rows) > 1:
        raise BadRequest(f"all inputs must have the same batch size, not {sorted(rows)}")
    return form, inputs


def v1_values(result: InferResult, form: str) -> Any:
    """Return the values of a single output; of several, an object of them, or one for each row.

    Raises BadRequest for rows of outputs that do not share their first dimension.
    """
    columns = {tensor.name: tensor_values(tensor) for tensor in result.outputs}
    if len(columns) == 1:
        return next(iter(columns.values()))
    if form == "outputs":
        return columns
    if len({tensor.shape[:1] for tensor in result.outputs}) > 1:
        raise BadRequest(
            "the outputs differ in their first dimension, so they have no rows: "
            'ask with "inputs" instead of "instances"'
        )
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _check_outputs(spec: ModelSpec) -> None:
    for item in spec.outputs:
        if item.datatype in BINARY_ONLY:
            raise BadRequest(
                f"output {item.name!r} has datatype {item.datatype}, which JSON cannot carry: "
                f"use /v2/models/{spec.name}/infer with binary data"
            )


def _check_rows(instances: Any, spec: ModelSpec) -> None:
    if not isinstance(instances, list):
        raise BadRequest(f'"instances" must be a list, not {json_type(instances)}')
    if not instances and not spec.batched:
        raise BadRequest('"instances" is an empty list')


def _all_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, str) for item in value)


def _columns_of_rows(instances: list[Any], spec: ModelSpec) -> dict[str, Any]:
    """Return each input's values of all rows, which are all objects of inputs or all plain."""
    if not _names_inputs(instances[0]):
        return {_only_input(spec, "instances"): instances}
    for index, row in enumerate(instances):
        if not _names_inputs(row):
            raise BadRequest(f"instances[{index}] must be an object of inputs like instances[0]")
        _check_names(row, spec, f"instances[{index}]")
        if row.keys() != instances[0].keys():
            raise BadRequest(
                f"instances[{index}] has {shown(sorted(row))}, instances[0] has "
                f"{shown(sorted(instances[0]))}"
            )
    return {name: [row[name] for row in instances] for name in instances[0]}


def _columns(value: Any, spec: ModelSpec) -> dict[str, Any]:
    if not _names_inputs(value):
        return {_only_input(spec, "inputs"): value}
    _check_names(value, spec, '"inputs"')
    return dict(value)


def _check_names(given: dict[str, Any], spec: ModelSpec, where: str) -> None:
    wanted = spec.inputs_by_name
    required = {name for name, tensor in wanted.items() if not tensor.optional}
    if not given or not required <= given.keys() <= wanted.keys():
        raise BadRequest(
            f"{where} has {shown(sorted(given))}, the inputs of '{spec.name}' are {[*wanted]}"
        )


def _only_input(spec: ModelSpec, key: str) -> str:
    if len(spec.inputs) > 1:
        raise BadRequest(
            f"{key!r} names no inputs, but '{spec.name}' has several: {[*spec.inputs_by_name]}"
        )
    return spec.inputs[0].name


def _names_inputs(value: Any) -> bool:
    return isinstance(value, dict) and not _is_binary(value)


def _is_binary(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"b64"} and isinstance(value["b64"], str)


def _tensor(value: Any, declared: TensorSpec, spec: ModelSpec, pictures: ReadPictures) -> Tensor:
    where = f"input {declared.name!r}"
    if value == [] and spec.batched:
        return spec.no_rows([declared])[0]
    if spec.image and declared.name == spec.image.input and _all_binary(value):
        return pictures([_binary(item, where) for item in value], spec)
    if declared.datatype == "BYTES":
        array = _bytes(value, where)
    else:
        array = to_array(value, declared.datatype, where)
    if array.ndim == len(declared.dims) and spec.batched and _may_be_bare(declared):
        array = array[..., None]
    check_shape(array.shape, declared, spec, where)
    return Tensor(declared.name, declared.datatype, array.shape, to_bytes(array))


def _may_be_bare(declared: TensorSpec) -> bool:
    """Tell whether a row of one value may come without its brackets; a string is a whole one."""
    return declared.dims[-1] == 1 or (declared.datatype == "BYTES" and declared.dims[-1] == -1)


def _all_binary(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_binary, value))


def _bytes(value: Any, where: str) -> Array:
    """Return an array of bytes from strings and base64 objects in nested lists."""
    if not isinstance(value, list):
        raise BadRequest(f"{where}: data must be a list, not {json_type(value)}")
    try:
        found = np.asarray(value, dtype=object)
    except ValueError as error:
        raise BadRequest(f"{where}: the lists of data differ in length or are too deep") from error
    items = np.empty(found.size, dtype=object)
    for index, item in enumerate(found.ravel()):
        items[index] = item.encode() if isinstance(item, str) else _binary(item, where)
    return items.reshape(found.shape)


def _binary(item: Any, where: str) -> bytes:
    if not _is_binary(item):
        raise BadRequest(
            f'{where}: data must be strings or {{"b64": "..."}}, in lists of the same length'
        )
    text = "".join(item["b64"].split())
    try:
        return b64decode(text + "=" * (-len(text) % 4), validate=True)
    except ValueError as error:
        raise BadRequest(f'{where}: "b64" is not base64: {error}') from error


def tensor_values(tensor: Tensor) -> Any:
    """Return an output as orjson takes it: an array, of BYTES lists of strings or objects."""
    array = tensor.array()
    if tensor.datatype != "BYTES":
        return array
    as_binary = tensor.name.endswith(BYTES_SUFFIX)
    items = np.empty(array.size, dtype=object)
    for index, item in enumerate(array.ravel()):
        items[index] = _shown(item, as_binary=as_binary)
    return items.reshape(array.shape).tolist()


def _shown(item: bytes, *, as_binary: bool) -> str | dict[str, str]:
    """Return one element of BYTES as text, or as base64 where it is no UTF-8."""
    if not as_binary:
        try:
            return item.decode()
        except UnicodeDecodeError:
            pass
    return {"b64": b64encode(item).decode()}
