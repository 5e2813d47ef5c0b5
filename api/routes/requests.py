"""/v2/requests/<id>: the answers of requests that were accepted with 202."""

from __future__ import annotations

import re

from flask import Blueprint, Response, request

from api.access.guard import KEY
from api.routes.flask_side import response_of, services
from shared.errors import BadRequest, UnknownRequest, shown

blueprint = Blueprint("requests", __name__)
ID = re.compile(r"[0-9a-f]{32}")
LONGEST_WAIT_SECONDS = 60.0


@blueprint.get("/v2/requests/<request_id>")
def respond(request_id: str) -> Response:
    """Answer as the route would have; 202 while it waits or runs, at most `?wait=` seconds."""
    client = request.environ.get("gunicorn.socket")
    return response_of(
        services().async_answers.respond(
            _known(request_id), _wait_seconds(), client, request.environ.get(KEY)
        )
    )


@blueprint.delete("/v2/requests/<request_id>")
def cancel(request_id: str) -> Response:
    """Cancel a request that does not run yet."""
    return response_of(
        services().async_answers.cancel(_known(request_id), request.environ.get(KEY))
    )


def _known(request_id: str) -> str:
    if not ID.fullmatch(request_id):
        raise UnknownRequest(f"no request {shown(request_id)}")
    return request_id


def _wait_seconds() -> float:
    raw = request.args.get("wait", "0")
    try:
        seconds = float(raw)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= LONGEST_WAIT_SECONDS:
        raise BadRequest(f"wait={shown(raw)} must be a number of seconds from 0 to 60")
    return seconds
