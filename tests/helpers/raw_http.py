"""HTTP/1.1 on a bare socket: every byte of a request as the test wants it, answers as they came."""

from __future__ import annotations

import gzip
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from operator import itemgetter
from typing import Any, NamedTuple


class Reply(NamedTuple):
    """One response: its status line, its headers in their order, its body."""

    line: str
    headers: list[tuple[str, str]]
    body: bytes

    @property
    def status(self) -> int:
        return int(self.line.split()[1])

    def header(self, name: str) -> str | None:
        return dict(self.headers).get(name)

    def comparable(self) -> tuple[Any, ...]:
        """Return all but the reason, the order of headers, and times and their digits."""
        kept = [
            (name, value if name in ("Connection", "Content-Type", "Retry-After") else None)
            for name, value in self.headers
        ]
        length = self.header("Inference-Header-Content-Length")
        body = gzip.decompress(self.body) if self.header("Content-Encoding") else self.body
        end = len(body) if length is None else int(length)
        answered = json.loads(body[:end])
        answered.pop("timings", None)
        return self.status, sorted(kept, key=itemgetter(0)), answered, body[end:]


class Connection:
    """A connection on which whole answers are read, and nothing of what follows them."""

    def __init__(self, plain: socket.socket) -> None:
        self.socket = plain
        self._reader = plain.makefile("rb")

    def close_reader(self) -> None:
        """subtle: until it is closed, closing the socket does not hang up."""
        self._reader.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def read(self) -> Reply | None:
        """Return the next answer, None at the end of the connection."""
        line = self._reader.readline()
        if not line:
            return None
        headers = []
        while (field := self._reader.readline()) != b"\r\n":
            name, _, value = field.decode().rstrip("\r\n").partition(": ")
            headers.append((name, value))
        length = int(dict(headers).get("Content-Length", 0))
        return Reply(line.decode().rstrip("\r\n"), headers, self._reader.read(length))

    def ask(self, data: bytes) -> Reply:
        self.send(data)
        reply = self.read()
        assert reply is not None, "the connection ended"
        return reply


@contextmanager
def connected(port: int) -> Iterator[Connection]:
    with socket.create_connection(("127.0.0.1", port), timeout=30) as plain:
        connection = Connection(plain)
        try:
            yield connection
        finally:
            connection.close_reader()


def message(
    path: str, body: bytes, *headers: str, method: str = "POST", version: str = "1.1"
) -> bytes:
    """Return a request; its Content-Length is among `headers` when it is not the body's."""
    fields = ["Host: localhost", *headers]
    if not any(field.startswith(("Content-Length", "Transfer-Encoding")) for field in headers):
        fields.append(f"Content-Length: {len(body)}")
    return "\r\n".join([f"{method} {path} HTTP/{version}", *fields, "", ""]).encode() + body
