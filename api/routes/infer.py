"""POST /v2/models/<model>/infer: the Open Inference Protocol's own route (stop 1 of the walk)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flask import Blueprint, Response, current_app, request

from api.infer.answer import HttpAnswer
from api.infer.asking import Question, respond
from api.infer.options import options_of
from api.infer.queues import Queues
from api.infer.render import render
from api.payloads.binary_tensors import header_length
from api.payloads.v2_json import parse_infer
from api.routes.v2 import checked_version
from api.server.body import read_body
from shared.messages import AnswerForm, Buffer
from shared.registry.catalog import Catalog

blueprint = Blueprint("inference", __name__)


class Inference:
    """What the route does, whoever reads the request and writes the answer."""

    def __init__(self, catalog: Catalog, queues: Queues) -> None:
        """Serve the catalog's models through the queues."""
        self._catalog = catalog
        self._queues = queues

    def infer(
        self, name: str, version: str | None, raw: Buffer, environ: Mapping[str, Any]
    ) -> HttpAnswer:
        """Answer one client's tensors now; whatever does not fit the model is never queued.

        Raises FerryError. Next stop: `RequestQueue.push`.
        """
        question = self.question(name, version, raw, environ)
        spec, inputs, outputs, options, how, named = question
        answered = self._queues.ask(spec, inputs, outputs, options, named=named)
        return render(answered.spec, answered.result, how)

    def question(
        self, name: str, version: str | None, raw: Buffer, environ: Mapping[str, Any]
    ) -> Question:
        """Check one client's tensors against the model; raises BadRequest and the like."""
        spec = self._catalog.serving(name, checked_version(version))
        body = parse_infer(raw, spec, header_length(environ, len(raw)))
        options = options_of(environ, body.parameters)
        how = AnswerForm("infer", body.id, outputs=body.outputs, binary=body.binary)
        return Question(spec, body.inputs, body.output_names, options, how, version is not None)


@blueprint.post("/v2/models/<name>/infer")
@blueprint.post("/v2/models/<name>/versions/<version>/infer")
def infer(name: str, version: str | None = None) -> Response:
    """Answer requests that `DirectInference` leaves to Flask: chunked or asynchronous ones."""
    inference: Inference = current_app.extensions["inference"]
    return respond(inference.question(name, version, read_body(), request.environ))
