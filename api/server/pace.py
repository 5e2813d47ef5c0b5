"""The pace of bodies on their way in: how slow they may come, and how much of them at a time.

A greenlet whose client is always ready would keep all others waiting, and one whose client never
is would keep its connection for ever.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from api.access.guard import KEY
from api.access.shares import HeldBody, KeyShares
from shared.access.keyring import Keyring
from shared.bodies.turns import let_others
from shared.settings import Settings

if TYPE_CHECKING:
    from wsgiref.types import WSGIEnvironment

LEAST_RATE = 16 * 1024
"""Bytes per second, on the whole, of a body that takes longer than the longest silence."""
RECEIVED_BYTES = 64 * 1024
TURN_BYTES = 256 * 1024
"""After so many others have their turn."""


class Pace:
    """The rules of one process's bodies, and the bytes of the large ones that it holds."""

    def __init__(self, settings: Settings, keyring: Keyring | None = None) -> None:
        """Hold none yet; keys that share are a `keyring`'s."""
        self.silence_seconds = settings.request_timeout_seconds
        self.longest_seconds = settings.max_body_seconds
        self._bodies = KeyShares(settings.max_bodies_bytes, keyring)

    @contextmanager
    def reading(self, body: Any, client: Any, environ: WSGIEnvironment) -> Iterator[HeldBody]:
        """Have what `body`, gunicorn's, reads from `client` keep the pace until the block ends.

        `environ` has the request's API key by then.
        Reads raise TimeoutError behind a silence, a slow stretch, or too long a time.
        """
        held, unreader = HeldBody(self._bodies), _unreader(body)
        timeout = client.gettimeout()
        if unreader is not None:
            unreader.sock = PacedSocket(client, self, held, environ)
        try:
            yield held
        finally:
            if unreader is not None:
                unreader.sock = client
            client.settimeout(timeout)
            held.release()


def _unreader(body: Any) -> Any:
    """Return what reads from the connection for gunicorn's body, None for another server's."""
    reader = getattr(body, "reader", None)
    request = getattr(reader, "req", None)  # of a chunked one
    return getattr(reader if request is None else request, "unreader", None)


class PacedSocket:
    """A connection as gunicorn's reader of bodies wants it."""

    def __init__(
        self, client: socket.socket, pace: Pace, held: HeldBody, environ: WSGIEnvironment
    ) -> None:
        """Begin now."""
        self._environ = environ
        self._client = client
        self._held = held
        self._silence_seconds = pace.silence_seconds
        self._began = time.monotonic()
        self._until = self._began + max(pace.longest_seconds, pace.silence_seconds)
        self._received = self._turn = 0

    def recv(self, size: int) -> bytes:
        """Return what has come, as a socket does; raises TimeoutError, QueueFull."""
        self._wait()
        # fast: gunicorn asks for all that is to come, and copies what it holds at each read.
        data = self._client.recv(min(size, RECEIVED_BYTES))
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
        self._held.add(count, self._environ.get(KEY))
        if self._turn >= TURN_BYTES:
            self._turn = 0
            let_others()
