"""Answers plain infer requests between gunicorn's parser and its socket: skip me at first.

fast: the same functions answer as from Flask's route, so nothing depends on this module but speed.
Flask's request and response, WSGI's environment, checks of headers that are our own and a write for
the head and one for the body cost several times what Ferry itself does with a small tensor
(docs/measurements.md). So does parsing heads that came before (`api/server/plain_heads.py`).
All other requests take the usual way, through WSGI and Flask.
"""

from __future__ import annotations

import socket
import time
from http import HTTPStatus
from io import BytesIO
from typing import TYPE_CHECKING, Any

from gunicorn.http.body import Body, LengthReader
from gunicorn.util import http_date

from api.access.browsers import HEADERS, Browsers
from api.access.guard import KEY
from api.infer.answer import HttpAnswer
from api.infer.inference import Inference
from api.infer.public_errors import error_answer
from api.payloads.binary_tensors import HEADER_VARIABLE
from api.payloads.json_size import check_json_size
from api.server.body import PIECE_BYTES, check_length, read_binary
from api.server.compression import Coding, is_to_be_packed, packed
from api.server.pace import Pace
from api.server.plain_heads import HEAD_END, PlainHeads, PlainRequest
from api.services import Services
from api.tracing import note_failure
from shared.access.api_key import ApiKey
from shared.logs import IN_HAND, REQUEST_ID_HEADER, REQUEST_ID_VARIABLE, AccessLog, RequestIds
from shared.messages import LARGE_BYTES

if TYPE_CHECKING:
    from wsgiref.types import WSGIEnvironment

ROUTE_OF_MODEL = "/v2/models/{model}/infer"
ROUTE_OF_VERSION = "/v2/models/{model}/versions/{version}/infer"
"""As traces name them."""
STATUS_LINES = {status.value: f"{status.value} {status.phrase}" for status in HTTPStatus}
SAFE = "".join(f"{name}: {value}\r\n" for name, value in HEADERS)
STATUS_LINES[499] = "499 Client Closed Request"


class FastPath:
    """Gunicorn's worker tries it before it hands a request to the application."""

    def __init__(
        self,
        inference: Inference,
        services: Services,
        browsers: Browsers,
        pace: Pace,
    ) -> None:
        """Answer by `inference` whom the services let in; bodies out of `pace` are given up."""
        settings = services.settings
        self._pace = pace
        self._inference = inference
        self._guard = services.guard
        self._tracing = services.tracing
        self._refusals = services.refusals
        self._ids = RequestIds()
        self._access = AccessLog(is_on=settings.access_log)
        self._max_body_bytes = settings.max_body_bytes
        self._max_json_bytes = settings.max_json_bytes
        self._heads = PlainHeads(browsers, min(LARGE_BYTES, settings.max_body_bytes))
        self._second = 0
        self._common = ""

    def try_answer(self, request: Any, client: socket.socket) -> bool:
        """Answer gunicorn's `request` on `client`, or return False with nothing read or written.

        Raises OSError when the client is gone.
        """
        plain = self._heads.plain(request)
        if plain is None:
            return False
        self._respond(plain, request.body, client, is_read=True)
        return True

    def try_answer_next(self, data: bytes, last: Any, client: socket.socket) -> bool:
        """Answer the request that `data` begins with, if its head is known or can be.

        `last` is the connection's last request that gunicorn parsed. What stands behind the request
        goes back to the unreader; a body that was not read becomes that of `last`, for gunicorn to
        skip. Returns False with nothing read or written. Raises OSError when the client is gone.
        """
        end = data.find(HEAD_END) + len(HEAD_END)
        head = data[:end]  # where there is no end, too short to be known
        plain = self._heads.find(head, last)
        if plain is None:
            return False
        body = data[end:]
        if len(body) == plain.length:
            self._respond(plain, BytesIO(body), client)
            return True
        last.unreader.unread(body)
        rest = Body(LengthReader(last.unreader, plain.length))
        self._respond(plain, rest, client, is_read=True)
        if rest.reader.length:  # it was refused unread, or its end is unknown
            last.body = rest
        return True

    def _answer(self, plain: PlainRequest, body: Any, environ: WSGIEnvironment) -> HttpAnswer:
        """Return the answer to a plain request, errors included, and trace it where wanted."""
        if self._tracing is None:
            return self._answered(plain, body, environ)
        route = ROUTE_OF_VERSION if plain.version else ROUTE_OF_MODEL
        trace = self._tracing.begin_http("POST", route, plain.model, environ)
        answer = self._answered(plain, body, environ)
        if trace is not None:
            trace.end_http(answer.status)
        return answer

    def _answered(self, plain: PlainRequest, body: Any, environ: WSGIEnvironment) -> HttpAnswer:
        key = None
        try:
            key = environ[KEY] = self._guard.admit(plain.secret, "infer", plain.model)
            check_length(plain.length, self._max_body_bytes)
            if HEADER_VARIABLE not in environ:
                check_json_size(plain.length, self._max_json_bytes)
            raw = read_binary(body, plain.length, self._max_body_bytes)
            return self._inference.infer(plain.model, plain.version, raw, environ)
        except Exception as error:  # a border, as Flask's own error handlers are
            note_failure(environ, error)
            self._refusals.note(error)
            return error_answer(error, f"POST {environ['PATH_INFO']}", key)

    def _respond(
        self, plain: PlainRequest, body: Any, client: socket.socket, *, is_read: bool = False
    ) -> None:
        """Answer a request under its id, and write its line in the access log.

        A body that `is_read` only now is to keep the pace.
        """
        began, known_as = time.perf_counter(), self._ids.of(plain.environ.get(REQUEST_ID_VARIABLE))
        IN_HAND.set((known_as,))
        environ = {**plain.environ, "gunicorn.socket": client, REQUEST_ID_VARIABLE: known_as}
        if is_read:
            with self._pace.reading(body, client, environ):
                answer = self._answer(plain, body, environ)
        else:
            answer = self._answer(plain, body, environ)
        self._write(answer, client, plain.coding, known_as)
        if self._access.is_on:
            key: ApiKey | None = environ.get(KEY)
            asked = f"POST {environ['PATH_INFO']}"
            self._access.write(
                _peer(client), asked, answer.status, began,
                key=key.name if key else None, model=plain.model, version=plain.version,
            )  # fmt: skip

    def _write(
        self, answer: HttpAnswer, client: socket.socket, coding: Coding | None, known_as: str
    ) -> None:
        now = int(time.time())
        if now != self._second:
            self._common = (
                f"Server: ferry\r\nDate: {http_date(now)}\r\nConnection: keep-alive\r\n{SAFE}"
            )
            self._second = now
        fields, body = _header_list(answer, known_as), answer.body
        if coding and is_to_be_packed(coding, len(body), is_good=answer.status == HTTPStatus.OK):
            fields, body = packed(fields, body, coding)
        headers = "".join([f"{name}: {value}\r\n" for name, value in fields])
        head = f"HTTP/1.1 {STATUS_LINES[answer.status]}\r\n{self._common}{headers}\r\n".encode(
            "latin-1"
        )
        if len(body) >= LARGE_BYTES:
            client.sendall(head)
            view = memoryview(body)
            for start in range(0, len(body), PIECE_BYTES):
                client.sendall(view[start : start + PIECE_BYTES])
            return
        data = head + body
        sent = client.send(data)
        if sent < len(data):  # fast: rare, and gevent's sendall costs twice its send
            client.sendall(data[sent:])


def _peer(client: socket.socket) -> str:
    try:
        return str(client.getpeername()[0])
    except (OSError, IndexError):
        return "-"


def _header_list(answer: HttpAnswer, known_as: str) -> list[tuple[str, str]]:
    return [
        ("Content-Type", answer.content_type),
        ("Content-Length", str(len(answer.body))),
        *answer.headers,
        (REQUEST_ID_HEADER, known_as),
    ]
