"""A request under way in this process: the arguments of its push, and later its answer."""

from __future__ import annotations

import math
import socket
from collections.abc import Callable
from threading import Event
from typing import NamedTuple

from shared.bodies.folder import PlacedBody
from shared.errors import BodyLost, FerryError, RedisUnavailable
from shared.messages import Buffers, InferRequest, InferResult

MAX_TENSOR_LOSSES = 3
"""A request whose tensors, or whose answer's, were lost so often beside Redis, is given up."""
LOST_BODY = InferResult(error=BodyLost.default()).encode()
"""An instance's answer to a request whose tensors are not beside Redis any more."""


class PushArguments(NamedTuple):
    """The arguments of `push.lua` for one request, in its order.

    `terms` are of its level's queue policy and its API key, empty when there are none. `digest` is
    of what it asks, empty when its model has no cache. `named` is 1 when the client names this
    version.
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
    named: int = 0

    def whole(self) -> PushArguments:
        """Return the same with a body that asks for all of its answer in Redis."""
        body = b"".join(self.body) if isinstance(self.body, Buffers) else self.body
        request = InferRequest.decode(self.id, self.rows, body)
        return self._replace(body=request._replace(whole=True).encode_large())

    @property
    def size(self) -> int:
        """The body's length in bytes."""
        return sum(map(len, self.body)) if isinstance(self.body, Buffers) else len(self.body)


class PendingRequest:
    """A request until it has an encoded result or an error. `deadline` is monotonic seconds.

    From `queue_deadline` on its queue policy rejects it, unless it has been claimed by then.
    It was `sent` when it may be stored, and `accepted` when Redis said so. `client` is the
    connection of whoever asked, None when it is not known. What of it was `placed` beside Redis is
    freed at its end; it `is_being_placed` before it is pushed. `push_whole` has all of it in Redis.
    `beside` lies what belongs to its result.
    """

    __slots__ = (
        "_cancel", "_then", "accepted", "beside", "client", "deadline", "done", "error", "id",
        "is_being_placed", "losses", "placed", "push", "push_whole", "queue_deadline", "result",
        "sent",
    )  # fmt: skip

    def __init__(
        self,
        push: PushArguments,
        deadline: float,
        cancel: Callable[[PendingRequest], None],
        client: socket.socket | None = None,
        then: Callable[[], None] | None = None,
    ) -> None:
        """Hold a request that is to be pushed; `cancel` takes it off the queue.

        `then` is called once it is done, by the courier's thread: it must not block.
        """
        self.id = push.id
        self.push = push
        self.deadline = deadline
        self.queue_deadline = math.inf
        self.client = client
        self.sent = False
        self.accepted = False
        self.done = Event()
        self.result: bytes | None = None
        self.beside: memoryview | None = None
        self.placed: PlacedBody | None = None
        self.is_being_placed = False
        self.push_whole: Callable[[], PushArguments] | None = None
        self.losses = 0
        self.error: FerryError | None = None
        self._cancel = cancel
        self._then = then

    @property
    def is_open(self) -> bool:
        """Tell whether there is neither an answer nor an error yet."""
        return self.result is None and self.error is None

    def wait(self) -> InferResult:
        """Block until the answer is there and return it, or raise the error it carries.

        Raises QueueFull, VersionRetired or RedisUnavailable when the request was not accepted,
        RequestExpired soon after the deadline, ClientLeft once it is cancelled. An accepted request
        survives a Redis that goes away: the courier pushes it again, under the same id, until the
        deadline.
        """
        self.done.wait()
        if self.error is not None:
            raise self.error if isinstance(self.error, RedisUnavailable) else self.error.of_queue()
        assert self.result is not None, "a done request has a result or an error"
        result = InferResult.decode(self.result, self.beside)
        if result.error is not None:
            raise result.error.of_queue()
        return result

    def cancel(self) -> None:
        """Cancel the request: `wait` raises ClientLeft, unless the answer was there before.

        One that is not being computed yet leaves the queue. For any thread, any number of times.
        """
        self._cancel(self)

    def lose(self) -> bool:
        """Have it asked with all in Redis from now on; tell whether it is worth to be asked again.

        Its tensors, or those of its answer, are gone.
        """
        self.losses += 1
        whole, self.push_whole = self.push_whole, None
        if whole is not None:
            self.push = whole()
        elif self.losses == 1:  # all of it was in Redis, but not its answer
            self.push = self.push.whole()
        if self.placed is not None:
            self.placed.free()
        return self.losses < MAX_TENSOR_LOSSES

    def answer(self, result: bytes, beside: memoryview | None = None) -> None:
        """Give it its encoded result, and what lies `beside` it."""
        self.beside = beside
        self.result = result
        self._finish()

    def fail(self, error: FerryError) -> None:
        """Give it an error instead."""
        self.error = error
        self._finish()

    def _finish(self) -> None:
        if self.placed is not None:
            self.placed.free()
        self.done.set()
        if self._then is not None:
            self._then()
