"""The API's end of every hop a request takes through Redis: push, then wait.

The other end is `worker_end.py`, the keys stand in `keys.py`.
"""

from __future__ import annotations

import itertools
import os
import socket
import time
from collections.abc import Callable
from functools import partial

from redis import Redis

from shared.bodies.folder import BodyFolder, SharedBodies, is_large
from shared.bodies.stored import BodyShelf, OwnBodies, StoredBodies
from shared.courier.courier import Courier
from shared.courier.pending import PendingRequest
from shared.messages import InferRequest
from shared.request_queue.commands import (
    as_push,
    cancel_command,
    collect_command,
    owner_of_push,
    pusher,
    rejected_after,
)
from shared.request_queue.keys import QueueKeys
from shared.request_queue.limits import Limits
from shared.wire.wire import open_wire

__all__ = ["PendingRequest", "RequestQueue"]


class RequestQueue:
    """The API's end: push a request, wait for its answer. For use by many threads."""

    def __init__(
        self,
        client: Redis,
        keys: QueueKeys,
        limits: Limits,
        bodies: SharedBodies | None = None,
        stored: StoredBodies | None = None,
    ) -> None:
        """Bind to one model version's keys; opens no connection before the first push.

        Large tensors of its requests, and of their answers, lie in shared memory as `bodies` say,
        else as `stored` says in body stores.
        """
        self._keys = keys
        self._limits = limits
        # This process's name among those that wait for answers of this version.
        self._process = os.urandom(4).hex()
        self._salt = os.urandom(6).hex()
        self._numbers = itertools.count()
        # subtle: an answer in a model's cache outlives whoever asked first, so it is whole.
        self._folder = (
            BodyFolder(bodies, self._process, keys.model_key)
            if bodies is not None and not keys.cache
            else None
        )
        self._shelf = (
            BodyShelf(stored, self._process, keys.model_key, limits.grace_seconds)
            if stored is not None and not keys.cache
            else None
        )
        self._courier = Courier(
            partial(open_wire, client),
            pusher(keys, limits),
            partial(cancel_command, keys),
            partial(collect_command, keys, self._process),
            keys.answered + self._process,
            OwnBodies(self._folder, self._shelf),
        )

    @property
    def waiting(self) -> int:
        """The number of requests that this process has under way."""
        return self._courier.waiting

    def waiting_on(self, level: int) -> int:
        """Return how many of them wait on a level; looks at each."""
        return self._courier.waiting_as(lambda push: push.priority == level)

    def waiting_of(self, owner: str, level: int = 0) -> int:
        """Return how many of them are an API key's, on any level or on this; looks at each."""
        ours = owner.encode()
        return self._courier.waiting_as(
            lambda push: push.priority == (level or push.priority) and owner_of_push(push) == ours
        )

    def new_id(self) -> str:
        """Return an id whose answer this process will be told of."""
        return f"{self._process}{self._salt}{next(self._numbers):012x}"

    def push(
        self,
        request: InferRequest,
        client: socket.socket | None = None,
        then: Callable[[], None] | None = None,
    ) -> PendingRequest:
        """Send the request to Redis, together with others of this process (stop 4).

        Whether it was accepted is said by `wait`. When the peer of `client` hangs up, the request
        is cancelled. `then` is called as `PendingRequest` says. Next stop: `WorkQueue.claim`, in an
        instance's process.
        """
        return self._carry(request, client, then)

    def hold(self, request: InferRequest, then: Callable[[], None]) -> PendingRequest:
        """Send the request at the next `release`; `then` is called as `PendingRequest` says."""
        return self._carry(request, None, then, held=True)

    def release(self) -> None:
        """Send the requests that are held, in one write."""
        self._courier.release()

    def _carry(
        self,
        request: InferRequest,
        client: socket.socket | None,
        then: Callable[[], None] | None,
        *,
        held: bool = False,
    ) -> PendingRequest:
        now = time.monotonic()
        push = as_push(request, self._keys, self._limits, in_buffers=True)
        deadline = now + request.timeout_seconds
        pending = PendingRequest(push, deadline, self._courier.cancel, client, then)
        if policy := self._limits.policy(request.priority):
            pending.queue_deadline = now + rejected_after(policy, request)
        if self._folder is not None:
            self._folder.open()  # also for small ones: their answers may be large
        if (self._folder is not None or self._shelf is not None) and is_large(request.inputs):
            self._carry_beside(pending, request, held=held)
        else:
            self._courier.carry(pending, held=held)
        return pending

    def _carry_beside(self, pending: PendingRequest, request: InferRequest, *, held: bool) -> None:
        """Put a request's tensors beside Redis, if they can be, and push it.

        subtle: others' requests come while it waits for that. So it is counted with those under
        way, and may expire or be cancelled before it is pushed.
        """
        whole = request._replace(whole=True)
        pending.push_whole = partial(as_push, whole, self._keys, self._limits, in_buffers=True)
        pending.is_being_placed = True
        self._courier.expect(pending)
        is_over = False
        try:
            placed = self._folder.put(request) if self._folder is not None else None
            if placed is None and self._shelf is not None:
                placed = self._shelf.put(request)
            is_over = True
        finally:
            if not is_over:
                self._courier.withdraw(pending)
        if placed is not None:
            pending.push = as_push(
                request, self._keys, self._limits, body=placed.message, record_bytes=placed.size
            )
            pending.placed = placed
        pending.is_being_placed = False
        if pending.is_open:
            self._courier.push(pending, held=held)
        elif placed is not None:
            placed.free()
