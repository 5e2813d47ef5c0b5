"""The pace of bodies on their way in: how slow they may come, and how much of them at a time.

A greenlet whose client is always ready would keep all others waiting, and one whose client never
is would keep its connection for ever.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from shared.errors import QueueFull
from shared.messages import LARGE_BYTES
from shared.settings import Settings

LEAST_RATE = 16 * 1024
"""Bytes per second, on the whole, of a body that takes longer than the longest silence."""
TURN_BYTES = 256 * 1024
"""After so many others have their turn."""


class Pace:
    """The rules of one process's bodies, and the bytes of the large ones that it holds."""

    def __init__(self, settings: Settings) -> None:
        """Hold none yet."""
        self.silence_seconds = settings.request_timeout_seconds
        self.longest_seconds = settings.max_body_seconds
        self._max_bytes = settings.max_bodies_bytes
        self._held_bytes = 0

    @contextmanager
    def reading(self, body: Any, client: Any) -> Iterator[HeldBody]:
        """Have what `body`, gunicorn's, reads from `client` keep the pace until the block ends.

        Reads raise TimeoutError behind a silence, a slow stretch, or too long a time.
        """
        held, unreader = HeldBody(self), _unreader(body)
        timeout = client.gettimeout()
        if unreader is not None:
            unreader.sock = PacedSocket(client, self, held)
        try:
            yield held
        finally:
            if unreader is not None:
                unreader.sock = client
            client.settimeout(timeout)
            held.release()

    def hold(self, count: int) -> None:
        """Count bytes that a request holds; raises QueueFull where they are too many."""
        if self._held_bytes + count > self._max_bytes:
            raise QueueFull("the bodies under way in this process are as large as they may be")
        self._held_bytes += count

    def let_go(self, count: int) -> None:
        """Count them no more."""
        self._held_bytes -= count


def _unreader(body: Any) -> Any:
    """Return what reads from the connection for gunicorn's body, None for another server's."""
    reader = getattr(body, "reader", None)
    request = getattr(reader, "req", None)  # of a chunked one
    return getattr(reader if request is None else request, "unreader", None)


class HeldBody:
    """The bytes of one request that its process holds; the first LARGE_BYTES count for nothing."""

    def __init__(self, pace: Pace) -> None:
        """Hold none yet."""
        self._pace = pace
        self._seen = self._held = 0

    def add(self, count: int) -> None:
        """Hold more; raises QueueFull."""
        self._seen += count
        wanted = max(0, self._seen - LARGE_BYTES)
        self._pace.hold(wanted - self._held)
        self._held = wanted

    def release(self) -> None:
        """Hold none any more."""
        self._pace.let_go(self._held)
        self._held = 0


class PacedSocket:
    """A connection as gunicorn's reader of bodies wants it."""

    def __init__(self, client: socket.socket, pace: Pace, held: HeldBody) -> None:
        """Begin now."""
        self._client = client
        self._held = held
        self._silence_seconds = pace.silence_seconds
        self._began = time.monotonic()
        self._until = self._began + max(pace.longest_seconds, pace.silence_seconds)
        self._received = self._turn = 0

    def recv(self, size: int) -> bytes:
        """Return what has come, as a socket does; raises TimeoutError, QueueFull."""
        self._wait()
        data = self._client.recv(size)
        self._took(len(data))
        return data

    def recv_into(self, buffer: memoryview) -> int:
        """Write what has come into `buffer`; else as `recv`."""
        self._wait()
        count = self._client.recv_into(buffer[:TURN_BYTES])
        self._took(count)
        return count

    def gettimeout(self) -> float | None:
        """Return the connection's."""
        return self._client.gettimeout()

    def settimeout(self, seconds: float | None) -> None:
        """Set the connection's."""
        self._client.settimeout(seconds)

    def _wait(self) -> None:
        """Allow the next piece as long as it may take."""
        now = time.monotonic()
        slow_by = now - self._began - self._silence_seconds - self._received / LEAST_RATE
        if slow_by > 0:
            raise TimeoutError("the body comes too slowly")
        allowed = min(-slow_by, self._silence_seconds, self._until - now)
        if allowed <= 0:
            raise TimeoutError("the body takes too long")
        self._client.settimeout(allowed)

    def _took(self, count: int) -> None:
        self._received += count
        self._turn += count
        self._held.add(count)
        if self._turn >= TURN_BYTES:
            self._turn = 0
            time.sleep(0)  # under gevent others run meanwhile
