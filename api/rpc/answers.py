"""From a result to a ModelInferResponse, all of whose outputs are raw."""

from __future__ import annotations

from tritonclient.grpc import service_pb2 as proto

from api.infer.outputs import shown_outputs
from api.infer.timings import timings_json
from shared.messages import AnswerForm, InferResult
from shared.model_spec import ModelSpec


def fill(
    response: proto.ModelInferResponse, spec: ModelSpec, result: InferResult, form: AnswerForm
) -> None:
    """Write the answer into an empty message, which may be part of another: no copy is made of it.

    What HTTP calls `timings` are parameters of the same names.
    """
    response.model_name, response.model_version, response.id = spec.name, spec.version, form.id
    for name, value in timings_json(result.timings).items():
        parameter = response.parameters[name]
        if isinstance(value, bool):
            parameter.bool_param = value
        elif isinstance(value, str):
            parameter.string_param = value
        elif isinstance(value, int):
            parameter.int64_param = value
        else:
            parameter.double_param = value
    for tensor, _ in shown_outputs(spec, result, form):
        response.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        response.raw_output_contents.append(bytes(tensor.data))  # bytes of bytes is no copy
