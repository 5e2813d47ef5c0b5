"""Answers plain infer requests between gunicorn's parser and its socket: skip me at first.

fast: the same functions answer as from Flask's route, so nothing depends on this module but speed.
Flask's request and response, WSGI's environment, checks of headers that are our own and a write for
the head and one for the body cost several times what Ferry itself does with a small tensor
(docs/measurements.md). So does parsing the same head again: clients send the same bytes with every
request, and the parser's result holds for the next. All other requests take
the usual way, through WSGI and Flask.
"""

from __future__ import annotations

import re
import socket
import time
from http import HTTPStatus
from io import BytesIO
from typing import TYPE_CHECKING, Any, NamedTuple

from gunicorn.http.body import Body, LengthReader
from gunicorn.http.unreader import IterUnreader
from gunicorn.util import http_date

from api.access.browsers import HEADERS, Browsers
from api.access.guard import AUTHORIZATION, KEY, X_API_KEY, secret_of
from api.infer.answer import HttpAnswer
from api.infer.inference import IDEMPOTENCY_KEY, PREFER, Inference
from api.infer.options import TIMEOUT_HEADER
from api.infer.public_errors import error_answer
from api.payloads.binary_tensors import HEADER_VARIABLE
from api.payloads.json_size import check_json_size
from api.server.body import PIECE_BYTES, check_length, read_binary, read_declared
from api.server.compression import Coding, chosen, is_to_be_packed, packed
from api.server.pace import Pace
from api.services import Services
from api.tracing import TRACEPARENT_VARIABLE, TRACESTATE_VARIABLE, note_failure
from shared.access.api_key import ApiKey
from shared.errors import FerryError
from shared.logs import IN_HAND, REQUEST_ID_HEADER, REQUEST_ID_VARIABLE, AccessLog, RequestIds
from shared.messages import LARGE_BYTES

if TYPE_CHECKING:
    from wsgiref.types import WSGIEnvironment

PATHS = "/v2/models/"
ROUTE = re.compile(r"/v2/models/([\w.-]+)(?:/versions/(\d+))?/infer", re.ASCII)
START = f"POST {PATHS}".encode()
ROUTE_OF_MODEL = "/v2/models/{model}/infer"
ROUTE_OF_VERSION = "/v2/models/{model}/versions/{version}/infer"
"""As traces name them."""
HEAD_END = b"\r\n\r\n"
LOOKED_AT = (
    "PATH_INFO", HEADER_VARIABLE, TIMEOUT_HEADER, REQUEST_ID_VARIABLE, TRACEPARENT_VARIABLE,
    TRACESTATE_VARIABLE,
)  # fmt: skip
"""The part of WSGI's environment that the answer depends on, besides the body."""
LEFT_TO_FLASK = (
    "HTTP_CONTENT_ENCODING", PREFER, IDEMPOTENCY_KEY, "HTTP_ORIGIN", "HTTP_SEC_FETCH_SITE",
)  # fmt: skip
"""Headers of requests that are not plain, those that browsers send of their pages among them."""
STATUS_LINES = {status.value: f"{status.value} {status.phrase}" for status in HTTPStatus}
SAFE = "".join(f"{name}: {value}\r\n" for name, value in HEADERS)
STATUS_LINES[499] = "499 Client Closed Request"
MAX_HEAD_BYTES = 2048
MAX_HEADS = 1024
"""The longest take 3 MB together. What stands in them (tokens, cookies) stays in memory as long."""


class PlainRequest(NamedTuple):
    """A plain infer request's head: a model, a body of `length` bytes, the answer's coding.

    `environ` is as much of WSGI's as its answer looks at, `secret` the API key that is in it.
    """

    model: str
    version: str | None
    length: int
    environ: WSGIEnvironment
    coding: Coding | None
    secret: str | None


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
        self._browsers = browsers
        self._ids = RequestIds()
        self._access = AccessLog(is_on=settings.access_log)
        self._max_body_bytes = settings.max_body_bytes
        self._max_json_bytes = settings.max_json_bytes
        self._heads: dict[bytes, PlainRequest | None] = {}
        self._second = 0
        self._common = ""

    def try_answer(self, request: Any, client: socket.socket) -> bool:
        """Answer gunicorn's `request` on `client`, or return False with nothing read or written.

        Raises OSError when the client is gone.
        """
        plain = self._plain(request)
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
        plain = self._heads[head] if head in self._heads else self._learned(head, last)
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

    def _learned(self, head: bytes, last: Any) -> PlainRequest | None:
        """Parse a head by gunicorn and remember the result, None for one that is not plain.

        Gunicorn parses by its settings and, only if those trust some peers and not others, by the
        peer.
        """
        if not head.startswith(START) or len(head) > MAX_HEAD_BYTES:
            return None
        if "*" not in last.cfg.forwarded_allow_ips:
            return None
        try:
            request = type(last)(last.cfg, IterUnreader(iter([head])), last.peer_addr, 2)
        except Exception:  # a border: it is parsed again, and answered with what is wrong with it
            return None
        plain = None if request.unreader.take_buffered() else self._plain(request)
        if plain and plain.length > min(LARGE_BYTES, self._max_body_bytes):
            plain = None
        if len(self._heads) >= MAX_HEADS:
            self._heads.clear()
        self._heads[head] = plain
        return plain

    def _plain(self, request: Any) -> PlainRequest | None:
        """Return the head of gunicorn's request, None for one that takes the usual way.

        So for one that is refused at the door but for its key, which is looked at each time.
        """
        if (
            request.method != "POST"
            or not request.path.startswith(PATHS)
            or request.version != (1, 1)
            or request.should_close()
        ):
            return None
        route, environ = ROUTE.fullmatch(request.path), _environment(request)
        if route is None or environ is None or any(name in environ for name in LEFT_TO_FLASK):
            return None
        length = environ.get("CONTENT_LENGTH", "")
        if not length.isdecimal():
            return None
        try:
            self._browsers.check_host(environ.get("HTTP_HOST", ""))
            secret = secret_of(environ.get(AUTHORIZATION), environ.get(X_API_KEY))
        except FerryError:
            return None
        accept = environ.get("HTTP_ACCEPT_ENCODING")
        kept = {name: environ[name] for name in LOOKED_AT if name in environ}
        coding = None if accept is None else chosen(accept)
        return PlainRequest(route[1], route[2], int(length), kept, coding, secret)

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
            if HEADER_VARIABLE in environ:
                raw = read_binary(body, plain.length, self._max_body_bytes)
            else:
                check_length(plain.length, self._max_body_bytes)
                check_json_size(plain.length, self._max_json_bytes)
                raw = read_declared(body, plain.length, self._max_body_bytes)
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


def _environment(request: Any) -> WSGIEnvironment | None:
    """Return the path and the headers as WSGI has them.

    None when a header is there twice, or wants another answer first, or another protocol.
    """
    environ = {"PATH_INFO": request.path}
    for name, value in request.headers:
        key = "CONTENT_LENGTH" if name == "CONTENT-LENGTH" else "HTTP_" + name.replace("-", "_")
        if key in environ or key in ("HTTP_EXPECT", "HTTP_UPGRADE"):
            return None
        environ[key] = value
    return environ
