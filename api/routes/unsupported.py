"""The parts of the v2 protocol that are not offered: 501 for what Triton's clients call there."""

from __future__ import annotations

from flask import Blueprint, Response

from api.infer.descriptions import TRACE
from api.payloads.infer_request import SHARED_MEMORY
from shared.errors import Unsupported

blueprint = Blueprint("unsupported", __name__)
METHODS = ["GET", "POST"]


@blueprint.route("/v2/systemsharedmemory/<path:action>", methods=METHODS)
@blueprint.route("/v2/cudasharedmemory/<path:action>", methods=METHODS)
def shared_memory(action: str) -> Response:
    """Refuse: the API and the models may be on different machines."""
    raise Unsupported(SHARED_MEMORY)


@blueprint.route("/v2/trace/setting", methods=METHODS)
@blueprint.route("/v2/models/<name>/trace/setting", methods=METHODS)
def trace(name: str | None = None) -> Response:
    """Refuse for the server and for any model, known or not."""
    raise Unsupported(TRACE)
