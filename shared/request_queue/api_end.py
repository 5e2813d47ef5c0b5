"""The API's end of every hop a request takes through Redis; the keys stand in `queue_keys.py`.

The other end is `work_queue.py`.
"""

from __future__ import annotations

import itertools
import os
import socket
import time
from collections.abc import Callable
from functools import partial

from redis import Redis

from shared.courier.courier import Courier
from shared.courier.pending import Parcel
from shared.messages import InferRequest, InferResult
from shared.request_queue.commands import (
    Limits,
    as_push,
    cancel_command,
    pusher,
    rejected_after,
)
from shared.request_queue.keys import QueueKeys
from shared.wire.wire import open_wire


class RequestQueue:
    """The API's end: push a request, wait for its answer. For use by many threads."""

    def __init__(self, client: Redis, keys: QueueKeys, limits: Limits) -> None:
        """Bind to one model version's keys; opens nothing before the first push."""
        self._keys = keys
        self._limits = limits
        self._process = os.urandom(4).hex()
        self._salt = os.urandom(6).hex()
        self._numbers = itertools.count()
        self._courier = Courier(
            partial(open_wire, client),
            pusher(keys, limits),
            partial(cancel_command, keys),
            keys.answered + self._process,
            keys.result,
        )

    @property
    def waiting(self) -> int:
        """How many requests this process has under way."""
        return self._courier.waiting

    def new_id(self) -> str:
        """Return an id whose answer this process will be told of."""
        return f"{self._process}{self._salt}{next(self._numbers):012x}"

    def push(self, request: InferRequest, client: socket.socket | None = None) -> Waiting:
        """Send the request to Redis, together with others of this process (stop 2).

        Whether it was accepted is said by `wait`. When the peer of `client` hangs up, the request
        is taken back. Next stop: `worker.instance.loop.run`, which claims it.
        """
        return self._carry(request, client=client)

    def hold(self, request: InferRequest, then: Callable[[], None]) -> Waiting:
        """Send the request at the next `release`; `then` is called as `Parcel` says."""
        return self._carry(request, then=then)

    def release(self) -> None:
        """Send what is held, in one write."""
        self._courier.release()

    def _carry(
        self,
        request: InferRequest,
        client: socket.socket | None = None,
        then: Callable[[], None] | None = None,
    ) -> Waiting:
        now = time.monotonic()
        push = as_push(request, self._keys, self._limits, in_buffers=True)
        parcel = Parcel(push, now + request.timeout_seconds, client, then)
        if policy := self._limits.policy(request.priority):
            parcel.queue_deadline = now + rejected_after(policy, request)
        self._courier.carry(parcel, held=then is not None)
        return Waiting(parcel, self._courier)


class Waiting:
    """A request that is not answered yet."""

    __slots__ = ("_courier", "parcel")

    def __init__(self, parcel: Parcel, courier: Courier) -> None:
        """Wait for what the courier carries."""
        self.parcel = parcel
        self._courier = courier

    def take_back(self) -> None:
        """Want the answer no more: `wait` raises ClientLeft, unless the answer was there before.

        What is not being computed yet leaves the queue. For any thread, as often as it likes.
        """
        self._courier.take_back(self.parcel)

    def wait(self) -> InferResult:
        """Block until the answer is there (stop 8) and return it, or raise the error it carries.

        Raises QueueFull or RedisUnavailable when the request was not accepted, RequestExpired soon
        after the deadline. An accepted request survives a Redis that goes away: the courier pushes
        it again, under the same id, until the deadline.
        """
        parcel = self.parcel
        parcel.done.wait()
        if parcel.error is not None:
            raise parcel.error
        assert parcel.result is not None, "a done parcel has a result or an error"
        result = InferResult.decode(parcel.result)
        if result.error is not None:
            raise result.error
        return result
