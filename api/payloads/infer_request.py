"""One infer request, whatever transport brought it, is checked against its model.

HTTP and gRPC take a request apart; here it is decided whether it fits, in the same words for both.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from api.payloads.binary_tensors import checked_binary
from api.payloads.json_arrays import (
    BINARY_ONLY,
    json_type,
    mixed,
    small_numbers,
    to_array,
    unnested,
)
from shared.datatypes import DATATYPES, NUMPY_TYPES, to_bytes
from shared.errors import BadRequest, Unsupported, shown
from shared.messages import Parameters, RequestedOutput, Tensor
from shared.model_spec import ELEMENTS_PARAMETER, ModelSpec, TensorSpec

SHARED_MEMORY = "shared memory is not supported: tensors travel in the bodies"
"""The refusal of the shared memory extensions."""
MAX_DIMENSION = 2**63 - 1
MAX_ID_BYTES = 1024
MOST_GIVEN = 1024
"""Inputs, outputs, parameters of one request or tensor, dimensions of a shape."""
_ONLY_INTEGERS = frozenset({int})


class GivenInput(NamedTuple):
    """One input as the client sent it: `data` as JSON's lists, or `raw` as binary tensor data.

    Nothing is checked yet but the name, which is a string. Data that may hold booleans is a
    MixedList.
    """

    name: str
    datatype: Any
    shape: Any
    data: Any = None
    raw: memoryview | None = None


class InferBody(NamedTuple):
    """A checked request: inputs in the model's order, requested outputs (empty for all).

    `binary` says that all outputs are binary, where none is requested by name.
    """

    id: str | None
    inputs: tuple[Tensor, ...]
    outputs: tuple[RequestedOutput, ...]
    parameters: Parameters
    binary: bool = False

    @property
    def output_names(self) -> tuple[str, ...]:
        """Return the names of the requested outputs, empty for all."""
        return tuple([wanted.name for wanted in self.outputs])


def check_inputs(given: Sequence[GivenInput], spec: ModelSpec) -> tuple[Tensor, ...]:
    """Return the tensors in the model's order; raises BadRequest naming mistake and place."""
    declared = spec.inputs_by_name
    found: dict[str, Tensor] = {}
    for item in given:
        name = item.name
        if name not in declared:
            raise BadRequest(
                f"unknown input {shown(name)}: the inputs of '{spec.name}' are {sorted(declared)}"
            )
        if name in found:
            raise BadRequest(f"input {name!r} is given twice")
        found[name] = _checked(item, declared[name], spec)
    if len(found) < len(declared):
        check_missing(found, spec)
    if spec.batched and len(found) > 1:
        rows = {tensor.shape[0] for tensor in found.values()}
        if len(rows) > 1:
            raise BadRequest(f"all inputs must have the same batch size, not {shown(sorted(rows))}")
    return tuple([found[name] for name in declared if name in found])


def check_missing(given: Collection[str], spec: ModelSpec) -> None:
    """Raise BadRequest when a required input is missing, or none is there to count the rows by."""
    declared = spec.inputs_by_name
    missing = [name for name in declared if name not in given and not declared[name].optional]
    if missing:
        raise BadRequest(f"missing input {missing[0]!r}: '{spec.name}' wants {list(declared)}")
    if not given and spec.batched:
        raise BadRequest(
            f"no input is given: '{spec.name}' takes {list(declared)}, and one says how many rows"
        )


def input_tensor(data: Any, spec: ModelSpec) -> Tensor:
    """Return JSON's rows as the model's only input; raises BadRequest."""
    declared = spec.inputs[0]
    array = to_array(mixed(data), declared.datatype, "input_tensor")
    check_shape(array.shape, declared, spec, "input_tensor")
    return Tensor(declared.name, declared.datatype, array.shape, to_bytes(array))


def check_outputs(wanted: Sequence[RequestedOutput], binary: bool, spec: ModelSpec) -> None:
    """Raise BadRequest unless the model has these outputs, each once, in a form they can have.

    `binary` is for all outputs where none is named.
    """
    if not wanted:
        for tensor in () if binary else spec.outputs:
            _check_json(tensor)
        return
    declared = {tensor.name: tensor for tensor in spec.outputs}
    seen: set[str] = set()
    for item in wanted:
        if item.name not in declared:
            known = list(declared)
            raise BadRequest(
                f"unknown output {shown(item.name)}: the outputs of '{spec.name}' are {known}"
            )
        if item.name in seen:
            raise BadRequest(f"Duplicate output name {item.name!r} is not allowed in a request")
        seen.add(item.name)
        if item.class_count and declared[item.name].datatype in {"BYTES", "BOOL"}:
            datatype = declared[item.name].datatype
            raise BadRequest(f"output {item.name!r}: no classification of datatype {datatype}")
        if not item.binary and not item.class_count:
            _check_json(declared[item.name])


def _check_json(tensor: TensorSpec) -> None:
    if tensor.datatype in BINARY_ONLY:
        raise BadRequest(
            f"output {tensor.name!r} has datatype {tensor.datatype}, which JSON cannot carry: "
            "ask for binary data"
        )


def check_shape(shape: tuple[int, ...], declared: TensorSpec, spec: ModelSpec, where: str) -> None:
    """Raise BadRequest unless `shape` fits the declared one and the batch limit."""
    if (
        spec.batched
        and len(shape) > 1
        and shape[1:] == declared.dims
        and shape[0] <= spec.max_batch_size
        and 0 not in shape
    ):
        return  # fast: nearly every shape fits, and this costs a third of what follows
    _check_overflow(shape, declared.datatype, where)
    wanted = spec.full_shape(declared)
    if len(shape) != len(wanted):
        raise BadRequest(
            f"{where}: shape {shown(list(shape))} has {len(shape)} dimensions, the model wants "
            f"{wanted}"
        )
    for got, want in zip(shape, wanted, strict=True):
        if want not in (got, -1):
            raise BadRequest(f"{where}: shape {shown(list(shape))}, the model wants {wanted}")
    if 0 in (shape[1:] if spec.batched else shape):
        raise BadRequest(f"{where}: shape {shown(list(shape))} has no elements")
    if declared.name in spec.open_limits:
        _check_open(shape, declared, spec, where)
    if spec.batched and shape[0] > spec.max_batch_size:
        raise BadRequest(
            f"inference request batch-size must be <= {spec.max_batch_size} for '{spec.name}', "
            f"{where} has {shape[0]} rows"
        )


def _check_open(shape: tuple[int, ...], declared: TensorSpec, spec: ModelSpec, where: str) -> None:
    """Raise BadRequest for more than the model takes where its config leaves the size open."""
    longest, largest = spec.open_limits[declared.name]
    row = shape[1:] if spec.batched else shape
    if max(row) > longest and longest < largest:
        raise BadRequest(
            f"{where}: shape {shown(list(shape))}, a text of '{spec.name}' has at most {longest} "
            "tokens (max_length in its config)"
        )
    if math.prod(row) > largest:
        raise BadRequest(
            f"{where}: shape {shown(list(shape))} has {math.prod(row)} elements in a row, "
            f"'{spec.name}' takes at most {largest} ({ELEMENTS_PARAMETER} in its config)"
        )


def _check_overflow(shape: tuple[int, ...], datatype: str, where: str) -> None:
    """Raise BadRequest for more elements, or bytes, than 63 bits count; in Triton's words."""
    count, item_bytes = (
        math.prod(shape),
        4 if datatype == "BYTES" else NUMPY_TYPES[datatype].itemsize,
    )
    if count > MAX_DIMENSION:
        raise BadRequest(
            f"{where}: shape {shown(list(shape))} causes total element count to exceed maximum "
            f"size of {MAX_DIMENSION}"
        )
    if count * item_bytes > MAX_DIMENSION:
        raise BadRequest(
            f"byte size overflow for {where}: shape {shown(list(shape))} of {datatype}"
        )


def check_id(value: Any) -> str | None:
    """Return a request's id, which comes back with its answer and is kept with it meanwhile."""
    if value is not None and not isinstance(value, str):
        raise BadRequest(f'"id" must be a string, not {json_type(value)}')
    if value is not None and (len(value) > MAX_ID_BYTES or len(value.encode()) > MAX_ID_BYTES):
        raise BadRequest(f'"id" is longer than {MAX_ID_BYTES} bytes')
    return value


def check_count(count: int, what: str) -> None:
    """Raise BadRequest for more tensors or parameters than any request has."""
    if count > MOST_GIVEN:
        raise BadRequest(f"{count} {what} are given, at most {MOST_GIVEN} are taken")


def check_parameters(parameters: Any, where: str) -> Parameters:
    """Return `parameters` when it is an object of strings, numbers and booleans (or absent).

    Raises BadRequest, and Unsupported when they point to shared memory.
    """
    if parameters is None:
        return {}
    if isinstance(parameters, dict):
        check_count(len(parameters), f"parameters of {where}")
    if not isinstance(parameters, dict) or not all(
        isinstance(value, str | int | float | bool) for value in parameters.values()
    ):
        raise BadRequest(
            f'"parameters" of {where} must be an object of strings, numbers and booleans'
        )
    if "shared_memory_region" in parameters:
        raise Unsupported(SHARED_MEMORY)
    return parameters


def class_count(parameters: Parameters, where: str) -> int:
    """Return the count of best classes that the parameters ask for, 0 for the output itself."""
    count = parameters.get("classification", 0)
    if type(count) is not int or count < 0:
        raise BadRequest(f'{where}: "classification" must be a number from 1, not {shown(count)}')
    return count


def _checked(item: GivenInput, declared: TensorSpec, spec: ModelSpec) -> Tensor:
    where, datatype, shape = f"input {shown(item.name)}", item.datatype, item.shape
    if datatype != declared.datatype:
        known = isinstance(datatype, str) and datatype in DATATYPES
        raise BadRequest(
            f"{where}: datatype {datatype}, the model wants {declared.datatype}"
            if known
            else f"{where}: unknown datatype {shown(datatype)}, the model wants {declared.datatype}"
        )
    if (
        not isinstance(shape, list)
        or len(shape) > MOST_GIVEN
        or not _ONLY_INTEGERS.issuperset(map(type, shape))
        or min(shape, default=0) < 0
        or max(shape, default=0) > MAX_DIMENSION
    ):
        raise BadRequest(f"{where}: shape must be a list of numbers that are not negative")
    dimensions = tuple(shape)
    check_shape(dimensions, declared, spec, where)
    if item.raw is not None:
        return Tensor(
            item.name, datatype, dimensions, checked_binary(item.raw, datatype, dimensions, where)
        )
    return Tensor(item.name, datatype, dimensions, _from_json(item, shape, where))


def _from_json(item: GivenInput, shape: list[int], where: str) -> bytes:
    if item.data is None:
        raise BadRequest(f"{where}: data is missing")
    count = math.prod(shape)
    packed = small_numbers(item.data, item.datatype, count)
    if packed is not None:
        return packed
    array = to_array(unnested(item.data, len(shape), where), item.datatype, where)
    if array.size != count:
        raise BadRequest(
            f"{where}: data has {array.size} elements, shape {shown(shape)} wants {count}"
        )
    if array.ndim == len(shape) and list(array.shape) != shape:
        raise BadRequest(
            f"{where}: data is nested as {list(array.shape)}, not as shape {shown(shape)}"
        )
    return to_bytes(array)
