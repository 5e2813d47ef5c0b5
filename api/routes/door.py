"""The door of every route: a host that is ours, no foreign page, and an API key that may do this.

A route that stands in no table here is for admins.
"""

from __future__ import annotations

from flask import Flask, Response, request

from api.access.browsers import HEADERS, Browsers
from api.access.guard import KEY
from api.routes.flask_side import services
from shared.access.api_key import Role

OPEN = frozenset(
    {"v2.live", "v2.ready", "openapi.document", "swagger_ui.show", "pages.static", "static"}
)
"""Probes have no keys, and what the routes are is no secret."""
FOR_ROLE: dict[Role, frozenset[str]] = {
    "infer": frozenset(
        {
            "inference.infer", "predict.predict", "embeddings.embed", "pages.root", "pages.model",
            "pages.tokens", "pages.burst", "v1.models", "v1.model", "v1.model_version",
            "v1.predict", "v1.other", "v2.server", "v2.model", "v2.config",
            "v2.model_ready", "v2.statistics", "v2.repository", "v2.shared_memory",
            "requests.respond", "requests.cancel",
        }
    ),
    "metrics": frozenset({"metrics.metrics"}),
}  # fmt: skip


def make_door(app: Flask, browsers: Browsers) -> None:
    """Have every request of `app` checked before anything of its body is read."""

    def enter() -> None:
        browsers.check(request.environ)
        endpoint = request.endpoint
        if endpoint in OPEN:
            return
        guard, model = services().guard, (request.view_args or {}).get("name")
        role = None if endpoint is None else role_of(endpoint)
        request.environ[KEY] = guard.enter(request.environ, role, model)

    app.before_request(enter)
    app.after_request(_with_headers)


def role_of(endpoint: str) -> Role:
    """Return who may ask a route."""
    return next((role for role, found in FOR_ROLE.items() if endpoint in found), "admin")


def _with_headers(response: Response) -> Response:
    for name, value in HEADERS:
        response.headers.setdefault(name, value)
    return response
