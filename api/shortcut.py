"""Answers plain infer requests between gunicorn's parser and its socket, in one write.

Building WSGI's environment and gunicorn's response, checking headers that are our own, and writing
head and body one after the other cost as much as all that Ferry does with a small tensor
(docs/performance.md). All other requests take the usual way through WSGI.
"""

from __future__ import annotations

import socket
import time
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from gunicorn.util import http_date

from api.compression import Coding, chosen, is_to_be_packed, packed
from api.direct import STATUS_LINES, DirectInference, header_list
from api.json_answers import Answer
from shared.pieces import LARGE_BYTES

if TYPE_CHECKING:
    from wsgiref.types import WSGIEnvironment

PATHS = "/v2/models/"


class Shortcut:
    """What gunicorn's worker asks before it hands a request to the application."""

    def __init__(self, direct: DirectInference, read_timeout_seconds: float) -> None:
        """Answer by `direct`; a body of which nothing comes for so long is given up."""
        self._direct = direct
        self._read_timeout_seconds = read_timeout_seconds
        self._second = 0
        self._common = ""

    def takes(self, request: Any, client: socket.socket) -> bool:
        """Answer gunicorn's `request` on `client`, or return False with nothing read or written.

        Raises OSError when the client is gone.
        """
        if (
            request.method != "POST"
            or not request.path.startswith(PATHS)
            or request.version != (1, 1)
            or request.should_close()
        ):
            return False
        environ = _environment(request, client)
        if environ is None:
            return False
        client.settimeout(self._read_timeout_seconds)
        try:
            answer = self._direct.answer(environ)
        finally:
            client.settimeout(None)
        if answer is None:
            return False
        accept = environ.get("HTTP_ACCEPT_ENCODING")
        self._write(answer, client, None if accept is None else chosen(accept))
        return True

    def _write(self, answer: Answer, client: socket.socket, coding: Coding | None) -> None:
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


def _environment(request: Any, client: socket.socket) -> WSGIEnvironment | None:
    """Return as much of WSGI's environment as `DirectInference` looks at.

    None when a header is there twice, or wants an answer before its body.
    """
    environ = {
        "REQUEST_METHOD": request.method,
        "PATH_INFO": request.path,
        "wsgi.input": request.body,
        "gunicorn.socket": client,
    }
    for name, value in request.headers:
        key = "CONTENT_LENGTH" if name == "CONTENT-LENGTH" else "HTTP_" + name.replace("-", "_")
        if key in environ or key == "HTTP_EXPECT":
            return None
        environ[key] = value
    return environ
