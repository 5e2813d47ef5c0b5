"""Entry point of rq-dashboard: `python -m jobs.dashboard --bind ADDRESS`.

As it comes (0.9.0) it unpickles what the hash of a job holds, and writes descriptions, results and
tracebacks into its pages as they are. Here nothing is unpickled, and every text of its answers
is escaped: neither a client nor whoever can write to Redis runs code in it, or in a browser.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable
from html import escape
from http import HTTPStatus
from typing import Any

import redis
from rq.serializers import DefaultSerializer, JSONSerializer
from rq_dashboard import web
from rq_dashboard.cli import make_flask_app

from api.access.browsers import READING, Browsers
from api.access.guard import Guard
from shared.errors import BadSetting, FerryError, MethodNotAllowed, Unauthorized
from shared.settings import Settings, start
from shared.wire.client import connect, public_url
from shared.wire.server_check import check_server

POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'"
)
"""Its pages' templates are scripts of its own that evaluate; nothing comes from elsewhere."""


CHANGED_BY_GET = "/requeue/"
"""A route of its that begins all failed jobs of a queue again, by GET as well."""


def main() -> int:
    """Serve the dashboard until told to stop; 2 for a bad setting or server."""
    parser = argparse.ArgumentParser(prog="jobs.dashboard")
    parser.add_argument("--bind", default="127.0.0.1", metavar="ADDRESS", help="[127.0.0.1]")
    options = parser.parse_args()
    try:
        settings = start(os.environ)
        check_server(settings)
    except BadSetting as error:
        print(f"dashboard: {error}", file=sys.stderr)
        return 2
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    make_dashboard(settings).run(host=options.bind, port=settings.dashboard_port)
    return 0


def make_dashboard(settings: Settings) -> Any:
    """Return rq-dashboard's application; from then on this process unpickles nothing of rq's."""
    DefaultSerializer.dumps, DefaultSerializer.loads = JSONSerializer.dumps, JSONSerializer.loads
    web.config.serializer = JSONSerializer
    app = make_flask_app(None, None, None, "")
    app.config["RQ_DASHBOARD_REDIS_URL"] = [public_url(settings.redis_url)]
    app.config["DEPRECATED_OPTIONS"] = []
    # Ours knows each form of REDIS_URL; the page's own would read another.
    client = connect(settings.redis_url, settings.key_prefix)
    web.from_url, app.redis_conn = lambda *_, **__: (None, client), client
    dumps = app.json.dumps
    app.json.dumps = lambda value, **options: dumps(escaped(value), **options)
    app.after_request(_with_policy)
    app.wsgi_app = Door(app.wsgi_app, settings, client)
    return app


class Door:
    """Lets in admins alone, under a name of ours, and nothing that a foreign page has sent."""

    def __init__(self, app: Callable[..., Any], settings: Settings, client: redis.Redis) -> None:
        """Stand before a WSGI application."""
        self._app = app
        self._browsers, self._guard = Browsers(settings), Guard(client, settings)

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        """Answer as WSGI has it."""
        reads = environ["REQUEST_METHOD"] in READING
        try:
            self._browsers.check(environ)
            self._guard.enter(environ, "admin", None)
            if reads and environ.get("PATH_INFO", "").startswith(CHANGED_BY_GET):
                raise MethodNotAllowed("this changes something: POST it")
        except FerryError as error:
            # A browser asks its user for the key then, as the password.
            challenge = [("WWW-Authenticate", "Basic")] if isinstance(error, Unauthorized) else []
            text = [("Content-Type", "text/plain; charset=utf-8"), *challenge]
            start_response(f"{error.status} {HTTPStatus(error.status).phrase}", text)
            return [error.message.encode()]
        return self._app(environ, start_response)


def escaped(value: Any) -> Any:
    """Return an answer with every text in it safe to stand in a page."""
    if isinstance(value, str):
        return escape(value)
    if isinstance(value, dict):
        return {escaped(name): escaped(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [escaped(each) for each in value]
    return value


def _with_policy(response: Any) -> Any:
    response.headers["Content-Security-Policy"] = POLICY
    return response


if __name__ == "__main__":
    sys.exit(main())
