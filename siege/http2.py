"""Calls of gRPC that are begun and not gone on with, thousands on a few connections.

The library's client has a thread for each. Source: RFC 9113 (HTTP/2), RFC 7541 (its headers).
"""

from __future__ import annotations

import socket
import struct
from contextlib import suppress

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RESET, SETTINGS, PING = 0, 1, 3, 4, 6
END_STREAM, ACKNOWLEDGED, END_HEADERS = 1, 1, 4
LITERAL = b"\0"
HEAD_BYTES = 9


class HeldCalls:
    """One connection, and the calls that were begun on it."""

    def __init__(self, port: int) -> None:
        """Connect."""
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        self._socket.settimeout(None)  # with one, Python waits for what MSG_DONTWAIT would not
        self._socket.sendall(PREFACE + _frame(SETTINGS, 0, 0, b""))
        self._came = b""
        self._next = 1
        self.begun = self.ended = 0

    def begin(self, path: str, message: bytes = b"") -> None:
        """Begin a call, and send a part of what it is to send."""
        head = _frame(HEADERS, END_HEADERS, self._next, _headers(path))
        self._socket.sendall(head + (_frame(DATA, 0, self._next, message) if message else b""))
        self._next += 2
        self.begun += 1

    def look(self) -> int:
        """Read what has come, answer pings, and return how many calls are over."""
        with suppress(BlockingIOError):
            while more := self._socket.recv(2**16, socket.MSG_DONTWAIT):
                self._came += more
        while len(self._came) >= HEAD_BYTES:
            size = int.from_bytes(self._came[:3], "big")
            if len(self._came) < HEAD_BYTES + size:
                break
            kind, flags = self._came[3:5]
            inside, self._came = self._came[HEAD_BYTES:][:size], self._came[HEAD_BYTES + size :]
            if kind in (PING, SETTINGS) and not flags & ACKNOWLEDGED:
                self._socket.sendall(_frame(kind, 1, 0, inside if kind == PING else b""))
            elif kind == RESET or (kind == HEADERS and flags & END_STREAM):
                self.ended += 1
        return self.ended

    def close(self) -> None:
        """Hang up."""
        self._socket.close()


def _headers(path: str) -> bytes:
    found = b""
    for name, value in (
        (":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "ferry"),
        ("te", "trailers"), ("content-type", "application/grpc"),
    ):  # fmt: skip
        found += LITERAL + bytes([len(name)]) + name.encode()
        found += bytes([len(value)]) + value.encode()
    return found


def _frame(kind: int, flags: int, stream: int, data: bytes) -> bytes:
    return len(data).to_bytes(3, "big") + struct.pack(">BBI", kind, flags, stream) + data
