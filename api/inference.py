"""POST /v2/models/<model>/infer: the Open Inference Protocol's own route (stop 1 of the walk)."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, Response, current_app

from api.body import read_body
from api.catalog import Catalog
from api.json_answers import JsonAnswer, json_answer
from api.json_tensors import InferBody, json_output, parse_infer
from api.metadata import checked_version
from api.queues import Queues
from api.timings import server_timing, timings_json
from shared.messages import InferResult
from shared.model_spec import ModelSpec

blueprint = Blueprint("inference", __name__)


class Inference:
    """What the route does, whoever reads the request and writes the answer."""

    def __init__(self, catalog: Catalog, queues: Queues) -> None:
        """Serve the catalog's models through the queues."""
        self._catalog = catalog
        self._queues = queues

    def infer(self, name: str, version: str | None, raw: bytes) -> JsonAnswer:
        """Answer one client's tensors; whatever does not fit the model is never queued.

        Raises FerryError. Next stop: `RequestQueue.push`.
        """
        spec = self._catalog.serving(name, checked_version(version))
        body = parse_infer(raw, spec)
        result = self._queues.ask(spec, body.inputs, body.outputs)
        return _answer(spec, body, result)


@blueprint.post("/v2/models/<name>/infer")
@blueprint.post("/v2/models/<name>/versions/<version>/infer")
def infer(name: str, version: str | None = None) -> Response:
    """Answer requests that `DirectInference` leaves to Flask, such as chunked ones."""
    inference: Inference = current_app.extensions["inference"]
    return inference.infer(name, version, read_body()).response()


def _answer(spec: ModelSpec, body: InferBody, result: InferResult) -> JsonAnswer:
    answer: dict[str, Any] = {"model_name": spec.name, "model_version": spec.version}
    if body.id is not None:
        answer["id"] = body.id
    answer["outputs"] = [json_output(tensor) for tensor in result.outputs]
    answer["timings"] = timings_json(result.timings)
    return json_answer(answer, headers=(("Server-Timing", server_timing(result.timings)),))
