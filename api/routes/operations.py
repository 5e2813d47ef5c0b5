"""/ops: the operations page, its stream of figures, and what operators do there."""

from __future__ import annotations

from flask import Blueprint, Response, current_app, request

from api.pages.actions import act
from api.pages.operations import Operations
from api.pages.stream import Streams
from api.payloads.v2_json import load_object
from api.routes.door import still_let_in
from api.routes.flask_side import HttpServices, json_response, services
from api.routes.page_guard import check_page
from api.routes.pages import page
from api.server.body import read_body
from shared.errors import BadRequest

STREAMS = "streams"
OPERATIONS = "operations"
MOST_DIGITS = 9
blueprint = Blueprint("ops", __name__)


def extensions(services: HttpServices) -> dict[str, object]:
    """Return what this room keeps in the application's extensions."""
    operations = Operations(services)
    return {OPERATIONS: operations, STREAMS: Streams(services, operations)}


@blueprint.get("/ops")
def operations() -> Response:
    """Answer the page."""
    settings = services().settings
    mode = settings.model_control_mode
    return page("operations.html", mode=mode, dashboard_port=settings.dashboard_port)


@blueprint.get("/ops/stream")
def stream() -> Response:
    """Answer events without an end, see `api.pages.stream`; 503 for one page too many."""
    streams: Streams = current_app.extensions[STREAMS]
    response = Response(streams.open(still_let_in()), mimetype="text/event-stream")
    response.headers["Cache-Control"] = "no-store"
    response.headers["X-Accel-Buffering"] = "no"  # nginx would hold the events back
    return response


@blueprint.get("/ops/dead")
def dead() -> Response:
    """Answer fifty dead requests from `?start=` on, newest first."""
    raw = request.args.get("start", "0")
    if not raw.isascii() or not raw.isdigit() or len(raw) > MOST_DIGITS:
        raise BadRequest(f"start={raw!r} must be a number")
    return json_response(_operations().dead(int(raw)))


@blueprint.get("/ops/disagreements/<name>")
def disagreements(name: str) -> Response:
    """Answer what a model's shadow answered otherwise, newest first, with the inputs."""
    return json_response(_operations().disagreements(name, services().tokenizers))


@blueprint.post("/ops/actions")
def action() -> Response:
    """Do what the body names, `{"action": ...}`; only for pages of this server."""
    check_page()
    wanted = load_object(read_body())
    return json_response({"done": act(services(), _operations().letters, wanted)})


def _operations() -> Operations:
    found: Operations = current_app.extensions[OPERATIONS]
    return found
