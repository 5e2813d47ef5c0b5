"""POST /v2/models/<model>/infer: the Open Inference Protocol's own route (stop 1 of the walk)."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, Response, current_app

from api.body import read_body
from api.json_answers import json_response
from api.json_tensors import InferBody, json_output, parse_infer
from api.metadata import checked_version
from api.timings import server_timing, timings_json
from shared.messages import InferResult
from shared.model_spec import ModelSpec

blueprint = Blueprint("inference", __name__)


@blueprint.post("/v2/models/<name>/infer")
@blueprint.post("/v2/models/<name>/versions/<version>/infer")
def infer(name: str, version: str | None = None) -> Response:
    """Answer one client's tensors; whatever does not fit the model is a 400 and never queued.

    Next stop: `RequestQueue.push`.
    """
    extensions = current_app.extensions
    spec = extensions["catalog"].serving(name, checked_version(version))
    body = parse_infer(read_body(), spec)
    result = extensions["queues"].ask(spec, body.inputs, body.outputs)
    return _response(spec, body, result)


def _response(spec: ModelSpec, body: InferBody, result: InferResult) -> Response:
    answer: dict[str, Any] = {"model_name": spec.name, "model_version": spec.version}
    if body.id is not None:
        answer["id"] = body.id
    answer["outputs"] = [json_output(tensor) for tensor in result.outputs]
    answer["timings"] = timings_json(result.timings)
    return json_response(answer, headers={"Server-Timing": server_timing(result.timings)})
