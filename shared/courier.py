"""Carries one process's requests to Redis and its answers back, for all its threads at once.

System calls are what a small request costs most, so nobody makes their own: whatever was handed in
while the last write was under way leaves in the next one, and one reader takes all answers that
are there. Measured 2026-11-21, see docs/performance.md.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from threading import Event, Lock, Thread
from typing import Any, NamedTuple

from redis.exceptions import RedisError, ResponseError

from shared.errors import FerryError, QueueFull, RedisUnavailable, RequestExpired
from shared.redis_connection import LONGEST_BLOCK_SECONDS, Wire, script_digest

log = logging.getLogger(__name__)

MAX_PARCELS_PER_WRITE = 256
RETRY_SECONDS = 0.1
DEADLINE_CHECK_SECONDS = 0.05


class Push(NamedTuple):
    """What `push.lua` wants to know of one request, in its order."""

    id: str
    rows: int
    signature: bytes
    timeout_seconds: float
    ttl_ms: int
    body: bytes


class Parcel:
    """One request under way, and later its encoded result or an error. `deadline` is monotonic."""

    __slots__ = ("accepted", "deadline", "done", "error", "push", "result")

    def __init__(self, push: Push, deadline: float) -> None:
        """Hold what is to be pushed."""
        self.push = push
        self.deadline = deadline
        self.accepted = False
        self.done = Event()
        self.result: bytes | None = None
        self.error: FerryError | None = None


class Courier:
    """Two connections per process and model version, opened at the first request.

    A request that finds nobody sending is sent by its own thread, which at low load saves two
    switches; those that come meanwhile are left to a thread that sends all there is at once.
    Another collects answers, and a third looks for passed deadlines, because a timer for every
    request costs as much as its answer.
    """

    def __init__(
        self,
        open_wire: Callable[[], Wire],
        push_command: Callable[[list[Push]], tuple[Any, ...]],
        answered_key: str,
        result_prefix: str,
    ) -> None:
        """Announcements come on `answered_key`, results are on `result_prefix` + id."""
        self._open_wire = open_wire
        self._push_command = push_command
        self._answered_key = answered_key
        self._result_prefix = result_prefix
        self._outbox: deque[Parcel] = deque()
        self._sending = Lock()
        self._more = Event()
        self._wire = open_wire()
        self._waiting: dict[str, Parcel] = {}
        self._starting = Lock()
        self._started = False

    def carry(self, parcel: Parcel) -> None:
        """Push the parcel's request, now or soon.

        Its `done` is set once there is a result or an error, at the latest soon after its deadline.
        """
        if not self._started:
            self._start()
        self._waiting[parcel.push.id] = parcel
        self._outbox.append(parcel)
        # Whoever holds the lock looks at the outbox again after giving it up: nothing is forgotten.
        if self._sending.acquire(blocking=False):
            try:
                self._send_some()
            finally:
                self._sending.release()
            if self._outbox:
                self._more.set()

    def _start(self) -> None:
        with self._starting:
            if not self._started:
                for run in (self._send_forever, self._collect_forever, self._expire_forever):
                    Thread(target=run, name=f"ferry{run.__name__}", daemon=True).start()
                self._started = True

    def _send_forever(self) -> None:
        while True:
            self._more.wait()
            self._more.clear()
            while self._outbox:
                with self._sending:
                    self._send_some()

    def _send_some(self) -> None:
        parcels: list[Parcel] = []
        while self._outbox and len(parcels) < MAX_PARCELS_PER_WRITE:
            parcels.append(self._outbox.popleft())
        if parcels:
            self._send(self._wire, parcels)

    def _send(self, wire: Wire, parcels: list[Parcel]) -> None:
        """Push all parcels in one write; a stale connection is opened anew, once."""
        try:
            try:
                statuses = self._push(wire, parcels)
            except ResponseError:
                raise
            except RedisError:
                statuses = self._push(wire, parcels)
        except ResponseError as error:
            for parcel in parcels:
                self._fail(parcel, RedisUnavailable(f"Redis refuses the request: {error}"))
        except RedisError as error:
            log.warning("%d requests refused, Redis fails: %s", len(parcels), error)
            for parcel in parcels:
                # An accepted one was being pushed again; the reader tries until Redis is back.
                if not parcel.accepted:
                    self._fail(
                        parcel,
                        RedisUnavailable("cannot reach the request queue, Redis does not answer"),
                    )

        else:
            for parcel, status in zip(parcels, statuses, strict=True):
                if status == b"full":
                    self._fail(parcel, QueueFull("Exceeds maximum queue size"))
                else:
                    parcel.accepted = True

    def _push(self, wire: Wire, parcels: list[Parcel]) -> list[bytes]:
        wire.send(self._push_command([parcel.push for parcel in parcels]))
        statuses: list[bytes] = wire.reply()
        return statuses

    def _expire_forever(self) -> None:
        while True:
            time.sleep(DEADLINE_CHECK_SECONDS)
            now = time.monotonic()
            for parcel in list(self._waiting.values()):
                if parcel.deadline <= now:
                    self._fail(parcel, RequestExpired("Request timeout expired"))

    def _fail(self, parcel: Parcel, error: FerryError) -> None:
        self._waiting.pop(parcel.push.id, None)
        parcel.error = error
        parcel.done.set()

    def _collect_forever(self) -> None:
        """Take answers as they are announced; after a lost connection, all that are there."""
        key, wire, lost = self._answered_key, self._open_wire(), False
        # BLMOVE onto itself waits for an announcement without taking it: what is lost on the way
        # to a process that cannot read it is still there for its next attempt.
        wait = ("BLMOVE", key, key, "LEFT", "LEFT", LONGEST_BLOCK_SECONDS)
        collect = ("EVALSHA", script_digest("collect"), 1, key, self._result_prefix)
        while True:
            try:
                if lost:
                    self._resume(wire, collect)
                    lost = False
                    log.info("Redis is back, %d requests wait on", len(self._waiting))
                wire.send(wait, collect)
                wire.reply()
                self._hand_out(wire.reply())
                # Those who were just given their answer go first, the next wait can wait.
                time.sleep(0)
            except RedisError as error:
                if not lost:
                    log.warning("answers wait, Redis fails, trying until it is back: %s", error)
                lost = True
                time.sleep(RETRY_SECONDS)

    def _resume(self, wire: Wire, collect: tuple[Any, ...]) -> None:
        """Take every answer that is there, and push again what may be gone; a known id is left."""
        wire.send((*collect, *list(self._waiting)))
        self._hand_out(wire.reply())
        self._outbox.extend(list(self._waiting.values()))
        self._more.set()

    def _hand_out(self, found: list[bytes]) -> None:
        for request_id, result in zip(found[::2], found[1::2], strict=True):
            parcel = self._waiting.pop(request_id.decode(), None)
            if parcel is not None:
                parcel.result = result
                parcel.done.set()
