"""From a ModelInferRequest to the checked request that HTTP makes of its body.

Apart from `inference`, which waits: what is here can be tested and fuzzed without a server.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tritonclient.grpc import service_pb2 as proto

from api.payloads.infer_request import (
    MOST_GIVEN,
    SHARED_MEMORY,
    GivenInput,
    InferBody,
    check_count,
    check_id,
    check_inputs,
    check_outputs,
    class_count,
)
from api.rpc.contents import NOTHING_PACKED, typed_data
from api.rpc.reading import InferMessage
from shared.errors import BadRequest, Unsupported, shown
from shared.messages import Buffer, Parameters, RequestedOutput
from shared.model_spec import ModelSpec


def read_request(given: InferMessage, spec: ModelSpec) -> InferBody:
    """Check a request against its model; raises BadRequest or Unsupported. Outputs are all raw."""
    request = given.message
    check_count(len(request.inputs), "inputs")
    check_count(len(request.outputs), "outputs")
    inputs = check_inputs(_given(given, spec), spec)
    outputs = tuple([_wanted(output) for output in request.outputs])
    check_outputs(outputs, binary=True, spec=spec)
    parameters = _parameters(request.parameters, "the request")
    return InferBody(check_id(request.id), inputs, outputs, parameters, binary=True)


def _given(given: InferMessage, spec: ModelSpec) -> list[GivenInput]:
    """Return the inputs as they came: all of them raw, or all of them typed."""
    raw, inputs = given.raw, given.message.inputs
    for tensor in inputs:
        if tensor.parameters:
            _parameters(tensor.parameters, f"input {shown(tensor.name)}")
        if raw and tensor.HasField("contents"):
            raise BadRequest(
                "contents field must not be specified when using raw_input_contents for "
                f"{shown(tensor.name)} for model {shown(given.message.model_name)}"
            )
    if not raw:
        raw = _typed(given, spec)
    elif len(raw) != len(inputs):
        raise BadRequest(
            f"there are {len(raw)} raw_input_contents for {len(inputs)} inputs: "
            "each input has its own, in their order"
        )
    return [
        GivenInput(
            tensor.name, tensor.datatype, list(tensor.shape[: MOST_GIVEN + 1]), raw=memoryview(data)
        )
        for tensor, data in zip(inputs, raw, strict=True)
    ]


def _typed(given: InferMessage, spec: ModelSpec) -> list[Buffer]:
    """Return the typed contents of inputs as raw data; of those that the model lacks, none."""
    found: list[Buffer] = []
    for place, tensor in enumerate(given.message.inputs):
        declared = spec.inputs_by_name.get(tensor.name)
        if declared is None:  # which is refused for that
            found.append(b"")
            continue
        most = spec.batch_rows * spec.most_elements(declared)
        packed = given.packed.get(place, NOTHING_PACKED)
        found.append(typed_data(tensor, f"input {shown(tensor.name)}", packed, most))
    return found


def _wanted(output: proto.ModelInferRequest.InferRequestedOutputTensor) -> RequestedOutput:
    if not output.parameters:
        return RequestedOutput(output.name, binary=True)
    where = f"output {shown(output.name)}"
    return RequestedOutput(
        output.name,
        binary=True,
        class_count=class_count(_parameters(output.parameters, where), where),
    )


def _parameters(parameters: Mapping[str, Any], where: str) -> Parameters:
    check_count(len(parameters), f"parameters of {where}")
    found = {}
    for name, value in parameters.items():
        if name == "shared_memory_region":
            raise Unsupported(SHARED_MEMORY)
        choice = value.WhichOneof("parameter_choice")
        if choice is None:
            raise BadRequest(f"parameter {shown(name)} of {where} has no value")
        found[name] = getattr(value, choice)
    return found
