"""Carries one process's requests to Redis and its answers back, for all its threads at once.

System calls are what a small request costs most, so nobody makes their own: whatever was handed in
while the last write was under way leaves in the next one, and one reader takes all answers that
are there. Measured 2026-11-21, see docs/performance.md.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from threading import Event, Lock, Thread
from typing import Any

from redis.exceptions import RedisError, ResponseError

from shared.errors import FerryError, QueueFull, RedisUnavailable
from shared.redis_connection import Wire, script_digest

log = logging.getLogger(__name__)

MAX_PARCELS_PER_WRITE = 256
BLOCK_SECONDS = 1.0
RETRY_SECONDS = 0.1


class Parcel:
    """One request under way: the push command, and later an encoded result or an error."""

    __slots__ = ("accepted", "done", "error", "id", "push", "result")

    def __init__(self, request_id: str, push: tuple[Any, ...]) -> None:
        """Hold a request's push command."""
        self.id = request_id
        self.push = push
        self.accepted = False
        self.done = Event()
        self.result: bytes | None = None
        self.error: FerryError | None = None


class Courier:
    """Two threads and connections per process and model version, started at the first request."""

    def __init__(
        self, open_wire: Callable[[], Wire], answered_key: str, result_prefix: str
    ) -> None:
        """Announcements come on `answered_key`, results are on `result_prefix` + id."""
        self._open_wire = open_wire
        self._answered_key = answered_key
        self._result_prefix = result_prefix
        self._outbox: SimpleQueue[Parcel] = SimpleQueue()
        self._waiting: dict[str, Parcel] = {}
        self._starting = Lock()
        self._started = False

    def carry(self, parcel: Parcel) -> None:
        """Push the parcel's request soon; its `done` is set once there is a result or an error."""
        if not self._started:
            self._start()
        self._waiting[parcel.id] = parcel
        self._outbox.put(parcel)

    def forget(self, parcel: Parcel) -> None:
        """Stop waiting for a parcel."""
        self._waiting.pop(parcel.id, None)

    def _start(self) -> None:
        with self._starting:
            if not self._started:
                Thread(target=self._send_forever, name="ferry-send", daemon=True).start()
                Thread(target=self._collect_forever, name="ferry-collect", daemon=True).start()
                self._started = True

    def _send_forever(self) -> None:
        wire = self._open_wire()
        while True:
            parcels = [self._outbox.get()]
            try:
                while len(parcels) < MAX_PARCELS_PER_WRITE:
                    parcels.append(self._outbox.get_nowait())
            except Empty:
                pass
            self._send(wire, parcels)

    def _send(self, wire: Wire, parcels: list[Parcel]) -> None:
        """Push all parcels in one write; a stale connection is opened anew, once."""
        try:
            try:
                wire.send(*(parcel.push for parcel in parcels))
                self._read_statuses(wire, parcels)
            except ResponseError:
                raise
            except RedisError:
                wire.send(*(parcel.push for parcel in parcels))
                self._read_statuses(wire, parcels)
        except RedisError as error:
            log.warning("%d requests refused, Redis fails: %s", len(parcels), error)
            for parcel in parcels:
                # An accepted one was being pushed again; the reader tries until Redis is back.
                if not parcel.accepted:
                    self._fail(
                        parcel,
                        RedisUnavailable("cannot reach the request queue, Redis does not answer"),
                    )

    def _read_statuses(self, wire: Wire, parcels: list[Parcel]) -> None:
        for parcel in parcels:
            try:
                status = wire.reply()
            except ResponseError as error:
                self._fail(parcel, RedisUnavailable(f"Redis refuses the request: {error}"))
                continue
            if status == b"full":
                self._fail(parcel, QueueFull("Exceeds maximum queue size"))
            else:
                parcel.accepted = True

    def _fail(self, parcel: Parcel, error: FerryError) -> None:
        self.forget(parcel)
        parcel.error = error
        parcel.done.set()

    def _collect_forever(self) -> None:
        """Take answers as they are announced; after a lost connection, all that are there."""
        key, wire, lost = self._answered_key, self._open_wire(), False
        # BLMOVE onto itself waits for an announcement without taking it: what is lost on the way
        # to a process that cannot read it is still there for its next attempt.
        wait = ("BLMOVE", key, key, "LEFT", "LEFT", BLOCK_SECONDS)
        collect = ("EVALSHA", script_digest("collect"), 1, key, self._result_prefix)
        while True:
            try:
                if lost:
                    self._resume(wire, collect)
                    lost = False
                    log.info("Redis is back, %d requests wait on", len(self._waiting))
                wire.send(wait, collect)
                wire.reply(BLOCK_SECONDS)
                self._hand_out(wire.reply())
            except RedisError as error:
                if not lost:
                    log.warning("answers wait, Redis fails, trying until it is back: %s", error)
                lost = True
                time.sleep(RETRY_SECONDS)

    def _resume(self, wire: Wire, collect: tuple[Any, ...]) -> None:
        """Take every answer that is there, and push again what may be gone; a known id is left."""
        wire.send((*collect, *list(self._waiting)))
        self._hand_out(wire.reply())
        for parcel in list(self._waiting.values()):
            self._outbox.put(parcel)

    def _hand_out(self, found: list[bytes]) -> None:
        for request_id, result in zip(found[::2], found[1::2], strict=True):
            parcel = self._waiting.pop(request_id.decode(), None)
            if parcel is not None:
                parcel.result = result
                parcel.done.set()
