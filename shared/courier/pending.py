"""What the courier carries: one request under way, and later its answer."""

from __future__ import annotations

import math
import socket
from collections.abc import Callable
from threading import Event
from typing import NamedTuple

from shared.errors import FerryError
from shared.messages import Buffers


class Push(NamedTuple):
    """What `push.lua` wants to know of one request, in its order.

    `terms` are what its level's queue policy says of it, empty when there is none. `digest` is of
    what it asks, empty when its model has no cache.
    """

    id: str
    rows: int
    priority: int
    signature: bytes
    timeout_seconds: float
    ttl_ms: int
    body: bytes | Buffers
    terms: bytes = b""
    digest: str = ""

    @property
    def size(self) -> int:
        """Return the body's length in bytes."""
        return sum(map(len, self.body)) if isinstance(self.body, Buffers) else len(self.body)


class Parcel:
    """A request until it has an encoded result or an error. `deadline` is monotonic seconds.

    From `queue_deadline` on its queue policy rejects it, unless it has been claimed by then.
    It was `sent` when it may be stored, and `accepted` when Redis said so. `client` is the
    connection of whoever asked, None when it is not known. `then` is called once it is done, by the
    courier's thread: it must not block.
    """

    __slots__ = (
        "accepted", "client", "deadline", "done", "error", "push", "queue_deadline", "result",
        "sent", "then",
    )  # fmt: skip

    def __init__(
        self,
        push: Push,
        deadline: float,
        client: socket.socket | None = None,
        then: Callable[[], None] | None = None,
    ) -> None:
        """Hold what is to be pushed."""
        self.push = push
        self.deadline = deadline
        self.queue_deadline = math.inf
        self.client = client
        self.sent = False
        self.accepted = False
        self.done = Event()
        self.result: bytes | None = None
        self.error: FerryError | None = None
        self.then = then

    @property
    def is_open(self) -> bool:
        """Tell whether there is neither an answer nor an error yet."""
        return self.result is None and self.error is None

    def answer(self, result: bytes) -> None:
        """Give it its encoded result."""
        self.result = result
        self._finish()

    def fail(self, error: FerryError) -> None:
        """Give it an error instead."""
        self.error = error
        self._finish()

    def _finish(self) -> None:
        self.done.set()
        if self.then is not None:
            self.then()
