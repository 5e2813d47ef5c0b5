"""Closes one process's requests before they are answered, and takes them off the queue."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from redis.exceptions import RedisError

from shared.bodies.folder import PlacedBody
from shared.courier.pending import PendingRequest
from shared.errors import FerryError, RequestExpired
from shared.wire.wire import Wire

log = logging.getLogger(__name__)

CANCEL_PAUSES = 20
"""The time to the next cancel, in times of the last: each walks the queue."""


class Cancels:
    """The requests that Redis is still to be told of. Any thread adds to them, one sends them."""

    def __init__(
        self, waiting: dict[str, PendingRequest], cancel_command: Callable[..., tuple[Any, ...]]
    ) -> None:
        """Close requests among those `waiting`, by id; `cancel_command` tells Redis."""
        self._waiting = waiting
        self._cancel_command = cancel_command
        self._unsent: deque[tuple[str, str, PlacedBody | None]] = deque()
        self._next_at = 0.0

    @property
    def is_empty(self) -> bool:
        """Tell whether nothing is left to be sent."""
        return not self._unsent

    def fail(self, request: PendingRequest, error: FerryError) -> bool:
        """Fail a request that is still open; tell whether it was.

        Whoever takes it out of `waiting` decides how it ends: it is given one error or one answer.
        """
        if self._waiting.pop(request.id, None) is None:
            return False
        request.fail(error)
        return True

    def close(
        self, why: str, requests: Iterable[PendingRequest], make_error: Callable[[], FerryError]
    ) -> None:
        """Fail requests at once and take them off the queue soon, counted as `why`."""
        for request in requests:
            if self._waiting.pop(request.id, None) is not None:
                # subtle: an instance that claims it until then finds all of it, and fails nothing.
                placed, request.placed = request.placed, None
                # First: its waiter goes on once it failed.
                self._unsent.append((why, request.id, placed))
                request.fail(make_error())

    def reject(self, request_id: str) -> None:
        """Take a request off the queue soon, and fail it then, if no instance has claimed it.

        Only Redis knows: it may be in a batch by now, and would be answered.
        """
        self._unsent.append(("rejected", request_id, None))

    def send(self, wire: Wire) -> None:
        """Tell Redis of all that is closed, unless the last time was too short a while ago."""
        if self.is_empty or time.monotonic() < self._next_at:
            return
        began = time.monotonic()
        self._send(wire)
        self._next_at = began + CANCEL_PAUSES * (time.monotonic() - began)

    def _send(self, wire: Wire) -> None:
        ids: dict[str, list[str]] = {}
        bodies = []
        while self._unsent:
            why, request_id, placed = self._unsent.popleft()
            ids.setdefault(why, []).append(request_id)
            if placed is not None:
                bodies.append(placed)
        try:
            for why, closed in ids.items():
                wire.send(self._cancel_command(why, closed, only_waiting=why == "rejected"))
                states = wire.reply()
                if why == "rejected":
                    self._fail_rejected(closed, states)
        except RedisError as failure:
            log.info("requests stay on the queue until they are claimed, Redis fails: %s", failure)
        for body in bodies:
            body.free()

    def _fail_rejected(self, ids: list[str], states: list[bytes]) -> None:
        for request_id, state in zip(ids, states, strict=True):
            request = self._waiting.get(request_id)
            if request is not None and state == b"waiting":  # else it runs, and is answered
                self.fail(request, RequestExpired("Request timeout expired"))
