"""Answers v2 infer requests without Flask's request and response objects.

They cost several times what Ferry's own code does for a small tensor (docs/performance.md). What is
plain is answered here, by the same functions that Flask's routes call; all else goes on to Flask.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from http import HTTPStatus
from typing import TYPE_CHECKING, NamedTuple

from api.infer.answer import HttpAnswer
from api.infer.inference import Inference
from api.infer.options import TIMEOUT_HEADER
from api.infer.public_errors import error_answer
from api.payloads.binary_tensors import HEADER_VARIABLE
from api.server.body import read_binary, read_declared

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

ROUTE = re.compile(r"/v2/models/([\w.-]+)(?:/versions/(\d+))?/infer", re.ASCII)
STATUS_LINES = {status.value: f"{status.value} {status.phrase}" for status in HTTPStatus}
STATUS_LINES[499] = "499 Client Closed Request"

LOOKED_AT = ("PATH_INFO", HEADER_VARIABLE, TIMEOUT_HEADER)
"""What of WSGI's environment the answer to a plain request depends on, besides its body."""


class PlainHead(NamedTuple):
    """What the head of a plain infer request asks for: a model, and a body of `length` bytes."""

    model: str
    version: str | None
    length: int


def plain_head(environ: WSGIEnvironment) -> PlainHead | None:
    """Return what a request asks for, None when it is anything but a plain infer request.

    Of the environment only the method, the path and the headers are looked at.
    """
    route = ROUTE.fullmatch(environ["PATH_INFO"])
    length = environ.get("CONTENT_LENGTH", "")
    if (
        route is None
        or environ["REQUEST_METHOD"] != "POST"
        or not length.isdecimal()
        or "HTTP_CONTENT_ENCODING" in environ
        or "HTTP_PREFER" in environ
        or "HTTP_IDEMPOTENCY_KEY" in environ
    ):
        return None
    return PlainHead(route[1], route[2], int(length))


class DirectInference:
    """WSGI middleware, see https://flask.palletsprojects.com/en/stable/quickstart/#hooking-in-wsgi-middleware."""

    def __init__(
        self, next_app: WSGIApplication, inference: Inference, max_body_bytes: int
    ) -> None:
        """Answer by `inference`, bodies up to `max_body_bytes`; hand on what is not plain."""
        self._next_app = next_app
        self._inference = inference
        self.max_body_bytes = max_body_bytes

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        head = plain_head(environ)
        if head is None:
            return self._next_app(environ, start_response)
        answer = self.respond(head, environ)
        start_response(STATUS_LINES[answer.status], header_list(answer))
        return (answer.body,)

    def respond(self, head: PlainHead, environ: WSGIEnvironment) -> HttpAnswer:
        """Return the answer to a plain request, errors included.

        Of the environment only LOOKED_AT, `wsgi.input` and `gunicorn.socket` are looked at.
        """
        try:
            read = read_binary if HEADER_VARIABLE in environ else read_declared
            raw = read(environ["wsgi.input"], head.length, self.max_body_bytes)
            return self._inference.infer(head.model, head.version, raw, environ)
        except Exception as error:  # a border, as Flask's own error handlers are
            return error_answer(error, f"POST {environ['PATH_INFO']}")


def header_list(answer: HttpAnswer) -> list[tuple[str, str]]:
    """Return an answer's headers."""
    return [
        ("Content-Type", answer.content_type),
        ("Content-Length", str(len(answer.body))),
        *answer.headers,
    ]
