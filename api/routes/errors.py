"""Flask's error handlers: every failure is JSON, `{"error", "code"}` or in OpenAI's form."""

from __future__ import annotations

from flask import Flask, Response, request
from gunicorn.http.errors import ParseException
from werkzeug.exceptions import ClientDisconnected, HTTPException, RequestEntityTooLarge
from werkzeug.exceptions import MethodNotAllowed as WerkzeugMethodNotAllowed
from werkzeug.exceptions import NotFound as WerkzeugNotFound

from api.access.guard import KEY
from api.infer.public_errors import error_answer, openai_error_answer
from api.routes.flask_side import response_of, services
from api.server.body import BODY_STOPPED
from api.tracing import note_failure
from shared.errors import (
    BadRequest,
    FerryError,
    MethodNotAllowed,
    PayloadTooLarge,
    RequestTimeout,
    UnknownRoute,
)

OPENAI_PATHS = {"/v1/embeddings"}
"""Routes of clients that read errors in OpenAI's form, all errors of theirs."""


def register_error_handlers(app: Flask) -> None:
    """Make every failure of `app` a JSON answer."""
    app.register_error_handler(HTTPException, _http_error)
    app.register_error_handler(ParseException, _body_error)
    app.register_error_handler(Exception, _any_error)


def _any_error(error: Exception) -> Response:
    answer = openai_error_answer if request.path.rstrip("/") in OPENAI_PATHS else error_answer
    key = request.environ.get(KEY)
    note_failure(request.environ, error)
    services().refusals.note(error)
    return response_of(answer(error, f"{request.method} {request.path}", key))


def _http_error(error: HTTPException) -> Response:
    """Turn Flask's and werkzeug's own refusals into ours."""
    if isinstance(error, RequestEntityTooLarge):
        ours: FerryError = PayloadTooLarge(_too_large(request.content_length))
    elif isinstance(error, ClientDisconnected) and isinstance(error.__context__, TimeoutError):
        ours = RequestTimeout(BODY_STOPPED)
    elif isinstance(error, WerkzeugNotFound):
        ours = UnknownRoute(f"no route {request.path}")
    elif isinstance(error, WerkzeugMethodNotAllowed):
        allowed = ", ".join(sorted(error.valid_methods or []))
        ours = MethodNotAllowed(f"{request.method} {request.path}: allowed are {allowed}")
    else:
        ours = BadRequest(error.description or error.name)
    response = _any_error(ours)
    if isinstance(error, WerkzeugMethodNotAllowed) and error.valid_methods:
        response.headers["Allow"] = ", ".join(sorted(error.valid_methods))
    return response


def _body_error(error: ParseException) -> Response:
    """Refuse a body that gunicorn cannot read: malformed chunks, trailers that are too long."""
    return _any_error(BadRequest(f"the body cannot be read: {error}"))


def _too_large(content_length: int | None) -> str:
    limit = request.max_content_length or 0
    if content_length is None:
        return f"the body is larger than {limit} bytes or has too many parts"
    if content_length > limit:
        return f"the body is {content_length} bytes, at most {limit} bytes are taken"
    return f"the multipart body has more than {request.max_form_parts} parts, or too long fields"
