"""Answers plain infer requests between gunicorn's parser and its socket, in one write.

Building WSGI's environment and gunicorn's response, checking headers that are our own, and writing
head and body one after the other cost as much as all that Ferry does with a small tensor
(docs/performance.md). So does parsing the same head again: clients send the same bytes with every
request, and what gunicorn's parser once made of them holds for the next. All other requests take
the usual way through WSGI.
"""

from __future__ import annotations

import socket
import time
from http import HTTPStatus
from io import BytesIO
from typing import TYPE_CHECKING, Any, NamedTuple

from gunicorn.http.body import Body, LengthReader
from gunicorn.http.unreader import IterUnreader
from gunicorn.util import http_date

from api.infer.answer import HttpAnswer
from api.server.compression import Coding, chosen, is_to_be_packed, packed
from api.server.direct import (
    LOOKED_AT,
    STATUS_LINES,
    DirectInference,
    PlainHead,
    header_list,
    plain_head,
)
from shared.messages import LARGE_BYTES

if TYPE_CHECKING:
    from wsgiref.types import WSGIEnvironment

PATHS = "/v2/models/"
START = f"POST {PATHS}".encode()
HEAD_END = b"\r\n\r\n"
MAX_HEAD_BYTES = 2048
MAX_HEADS = 1024
"""The longest take 3 MB together. What stands in them (tokens, cookies) stays in memory as long."""


class Plain(NamedTuple):
    """What is known of a request: `environ` is as much of WSGI's as its answer looks at."""

    head: PlainHead
    environ: WSGIEnvironment
    coding: Coding | None


class Shortcut:
    """What gunicorn's worker asks before it hands a request to the application."""

    def __init__(self, direct: DirectInference, read_timeout_seconds: float) -> None:
        """Answer by `direct`; a body of which nothing comes for so long is given up."""
        self._direct = direct
        self._read_timeout_seconds = read_timeout_seconds
        self._heads: dict[bytes, Plain | None] = {}
        self._second = 0
        self._common = ""

    def takes(self, request: Any, client: socket.socket) -> bool:
        """Answer gunicorn's `request` on `client`, or return False with nothing read or written.

        Raises OSError when the client is gone.
        """
        plain = _plain(request)
        if plain is None:
            return False
        self._answer_reading(plain, request.body, client)
        return True

    def takes_next(self, data: bytes, last: Any, client: socket.socket) -> bool:
        """Answer the request that `data` begins with, if its head is known or can be.

        `last` is the connection's last request that gunicorn parsed. What stands behind the request
        goes back to the unreader. Returns False with nothing read or written. Raises StopIteration
        when no other request can follow, OSError when the client is gone.
        """
        end = data.find(HEAD_END) + len(HEAD_END)
        head = data[:end]  # where there is no end, too short to be known
        plain = self._heads[head] if head in self._heads else self._learned(head, last)
        if plain is None:
            return False
        body, length = data[end:], plain.head.length
        if len(body) == length:
            self._write(self._answer(plain, BytesIO(body), client), client, plain.coding)
            return True
        last.unreader.unread(body)
        rest = Body(LengthReader(last.unreader, length))
        self._answer_reading(plain, rest, client)
        if rest.reader.length:
            raise StopIteration
        return True

    def _learned(self, head: bytes, last: Any) -> Plain | None:
        """Have gunicorn parse a head, and remember what it found: None for one that is not plain.

        It parses by its settings and, only if those trust some peers and not others, by the peer.
        """
        if not head.startswith(START) or len(head) > MAX_HEAD_BYTES:
            return None
        if "*" not in last.cfg.forwarded_allow_ips:
            return None
        try:
            request = type(last)(last.cfg, IterUnreader(iter([head])), last.peer_addr, 2)
        except Exception:  # a border: it is parsed again, and answered with what is wrong with it
            return None
        plain = None if request.unreader.take_buffered() else _plain(request)
        if plain and plain.head.length > min(LARGE_BYTES, self._direct.max_body_bytes):
            plain = None
        if len(self._heads) >= MAX_HEADS:
            self._heads.clear()
        self._heads[head] = plain
        return plain

    def _answer(self, plain: Plain, body: Any, client: socket.socket) -> HttpAnswer:
        environ = {**plain.environ, "wsgi.input": body, "gunicorn.socket": client}
        return self._direct.respond(plain.head, environ)

    def _answer_reading(self, plain: Plain, body: Any, client: socket.socket) -> None:
        """Answer a request whose body is still to be read, or a part of it."""
        client.settimeout(self._read_timeout_seconds)
        try:
            answer = self._answer(plain, body, client)
        finally:
            client.settimeout(None)
        self._write(answer, client, plain.coding)

    def _write(self, answer: HttpAnswer, client: socket.socket, coding: Coding | None) -> None:
        now = int(time.time())
        if now != self._second:
            self._common = (
                f"Server: gunicorn\r\nDate: {http_date(now)}\r\nConnection: keep-alive\r\n"
            )
            self._second = now
        fields, body = header_list(answer), answer.body
        if coding and is_to_be_packed(coding, len(body), is_good=answer.status == HTTPStatus.OK):
            fields, body = packed(fields, body, coding)
        headers = "".join([f"{name}: {value}\r\n" for name, value in fields])
        head = f"HTTP/1.1 {STATUS_LINES[answer.status]}\r\n{self._common}{headers}\r\n".encode(
            "latin-1"
        )
        if len(body) >= LARGE_BYTES:
            client.sendall(head)
            client.sendall(body)
            return
        data = head + body
        sent = client.send(data)
        if sent < len(data):  # rare, and gevent's sendall costs twice its send
            client.sendall(data[sent:])


def _plain(request: Any) -> Plain | None:
    """Return what gunicorn's request asks for, None for one that takes the usual way."""
    if (
        request.method != "POST"
        or not request.path.startswith(PATHS)
        or request.version != (1, 1)
        or request.should_close()
    ):
        return None
    environ = _environment(request)
    head = None if environ is None else plain_head(environ)
    if environ is None or head is None:
        return None
    accept = environ.get("HTTP_ACCEPT_ENCODING")
    kept = {name: environ[name] for name in LOOKED_AT if name in environ}
    return Plain(head, kept, None if accept is None else chosen(accept))


def _environment(request: Any) -> WSGIEnvironment | None:
    """Return as much of WSGI's environment as `plain_head` looks at.

    None when a header is there twice, or wants another answer first, or another protocol.
    """
    environ = {"REQUEST_METHOD": request.method, "PATH_INFO": request.path}
    for name, value in request.headers:
        key = "CONTENT_LENGTH" if name == "CONTENT-LENGTH" else "HTTP_" + name.replace("-", "_")
        if key in environ or key in ("HTTP_EXPECT", "HTTP_UPGRADE"):
            return None
        environ[key] = value
    return environ
