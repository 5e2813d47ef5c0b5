"""POST /v2/models/<model>/infer: the Open Inference Protocol's own route (stop 1 of the walk)."""

from __future__ import annotations

from flask import Blueprint, Response, request

from api.routes.flask_side import response_of, services
from api.server.body import read_tensors

blueprint = Blueprint("inference", __name__)


@blueprint.post("/v2/models/<name>/infer")
@blueprint.post("/v2/models/<name>/versions/<version>/infer")
def infer(name: str, version: str | None = None) -> Response:
    """Answer tensors with tensors, now or later. Next stop: `Inference.infer`.

    Most requests get there without Flask, see `api.server.fast_path`.
    """
    ours = services()
    raw = read_tensors(ours.settings.max_json_bytes)
    return response_of(ours.inference.infer(name, version, raw, request.environ))
