"""The door of every route: an id, a host that is ours, no foreign page, a key that may do this.

A route that stands in no table here is for admins.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from flask import Flask, Response, g, request

from api.access.browsers import HEADERS, Browsers
from api.access.guard import KEY
from api.routes.flask_side import services
from api.tracing import TRACE, Tracing
from shared.access.api_key import Role
from shared.logs import IN_HAND, REQUEST_ID_HEADER, REQUEST_ID_VARIABLE, AccessLog, RequestIds
from shared.settings import Settings

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


TRACED = frozenset({"inference.infer", "predict.predict", "embeddings.embed", "v1.predict"})
"""Routes that ask models."""
BRACES = str.maketrans("<>", "{}")


def register_request_ids(app: Flask, settings: Settings) -> None:
    """Have every request known by its `X-Request-Id`, or by a new one."""
    ids, access = RequestIds(), AccessLog(is_on=settings.access_log)

    @app.before_request
    def begin() -> None:
        known_as = ids.of(request.environ.get(REQUEST_ID_VARIABLE))
        request.environ[REQUEST_ID_VARIABLE] = known_as
        IN_HAND.set((known_as,))
        g.began = time.perf_counter()

    @app.after_request
    def end(response: Response) -> Response:
        response.headers[REQUEST_ID_HEADER] = request.environ[REQUEST_ID_VARIABLE]
        if access.is_on:
            client, asked = request.remote_addr or "-", f"{request.method} {request.path}"
            key, known = request.environ.get(KEY), request.view_args or {}
            access.write(
                client, asked, response.status_code, g.began,
                key=key.name if key else None,
                model=known.get("name"), version=known.get("version"),
            )  # fmt: skip
        return response


def register_traces(app: Flask, tracing: Tracing) -> None:
    """Have requests to models traced, from here on: also those that are refused at the door."""

    @app.before_request
    def begin() -> None:
        if request.endpoint in TRACED and request.url_rule is not None:
            route = request.url_rule.rule.replace("<name>", "{model}").translate(BRACES)
            model = (request.view_args or {}).get("name", "")
            tracing.begin_http(request.method, route, model, request.environ)

    @app.after_request
    def end(response: Response) -> Response:
        if (trace := request.environ.get(TRACE)) is not None:
            trace.end_http(response.status_code)
        return response


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


def still_let_in() -> Callable[[], bool]:
    """Return whether who asks now would be let in later: for answers without an end."""
    role = role_of(request.endpoint or "")
    return partial(services().guard.still_lets_in, request.environ, role)


def role_of(endpoint: str) -> Role:
    """Return who may ask a route."""
    return next((role for role, found in FOR_ROLE.items() if endpoint in found), "admin")


def _with_headers(response: Response) -> Response:
    for name, value in HEADERS:
        response.headers.setdefault(name, value)
    return response
