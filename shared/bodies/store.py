"""One body store: a Redis server that holds large tensors for as long as they are under way."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from threading import BoundedSemaphore, Lock, Thread
from typing import Any

from redis.exceptions import RedisError, ResponseError

from shared.messages import IN_MEMORY
from shared.redis_urls import RedisUrl
from shared.wire.client import connect, public_url
from shared.wire.packing import Command
from shared.wire.wire import Wire

log = logging.getLogger(__name__)

CONNECT_SECONDS = 0.2
COMMAND_SECONDS = 0.5
"""Who does not answer for so long is away."""
PAUSE_SECONDS = 0.5
LONGEST_ABSENCE_SECONDS = 5.0
"""The pauses before a store that is away is asked whether it is back; each is twice the last."""
MAX_DOUBTFUL = 10_000
"""Keys; what is beyond expires."""
MAX_WIRES = 8
"""Connections of one process to one store: who finds all taken waits."""


@dataclass
class Begun:
    """Commands that were written to a store, `count` in all, and whose replies are to be read."""

    wire: Wire
    count: int


class Store:
    """One server; for any number of threads.

    Nothing raises: one that fails is away until it answers again, which a thread of its own looks
    for meanwhile, so nobody waits for it twice.
    """

    def __init__(self, url: str) -> None:
        """Open nothing before the first command."""
        self.name = public_url(url)
        self.id = _id(url)
        self.is_away = False
        self._full_until = 0.0
        client = connect(url, command_seconds=COMMAND_SECONDS, connect_seconds=CONNECT_SECONDS)
        make_connection = client.connection_pool.make_connection
        self._new_wire = partial(Wire, make_connection, (), COMMAND_SECONDS)
        self._idle = deque[Wire]()
        self._places = BoundedSemaphore(MAX_WIRES)
        self._failing = Lock()
        self._doubtful = deque[str](maxlen=MAX_DOUBTFUL)

    @property
    def takes(self) -> bool:
        """Tell whether something can be written to it, as far as is known."""
        return not self.is_away and time.monotonic() >= self._full_until

    def ask(self, *commands: Command) -> list[Any]:
        """Return the replies to commands, as `replies` does."""
        return self.replies(self.begin(*commands))

    def begin(self, *commands: Command) -> Begun | None:
        """Write commands; None where that fails. Their `replies` must be read."""
        if self.is_away:
            return None
        self._places.acquire()
        begun: Begun | None = None
        try:
            if not self.is_away:  # it may be by now
                wire = self._take()
                wire.send(*commands)
                begun = Begun(wire, len(commands))
        except RedisError as error:
            self.fail(error)
        finally:
            if begun is None:
                self._places.release()
        return begun

    def go_on(self, begun: Begun, *commands: Command) -> None:
        """Write more commands behind those that were begun."""
        try:
            begun.wire.send_behind(*commands)
        except RedisError as error:
            self.fail(error)
        begun.count += len(commands)

    def replies(self, begun: Begun | None) -> list[Any]:
        """Return the replies, error replies as they are; none where the store is away."""
        if begun is None:
            return []
        found: list[Any] = []
        try:
            for _ in range(begun.count):
                try:
                    found.append(begun.wire.reply())
                except ResponseError as error:
                    found.append(error)
        except RedisError as error:
            self.fail(error)
            return []
        finally:
            if begun.wire.is_open:
                self._idle.append(begun.wire)
            self._places.release()
        return found

    def doubt(self, keys: Sequence[str]) -> None:
        """Remove keys once it answers again: it may have taken what was sent before it failed."""
        self._doubtful.extend(keys)

    def refuse(self, error: object) -> None:
        """Write nothing to it for a moment: it is full, or does not let us."""
        if self.takes:
            log.warning("body store %s: %s; large bodies go through Redis", self.name, error)
        self._full_until = time.monotonic() + PAUSE_SECONDS

    def fail(self, error: RedisError) -> None:
        """Leave it, until it answers again."""
        with self._failing:
            if self.is_away:
                return
            self.is_away = True
        log.warning("body store %s: %s; large bodies go through Redis", self.name, error)
        while self._idle:
            with suppress(IndexError):
                self._idle.pop().close()
        Thread(target=self._wait, name="ferry-store", daemon=True).start()

    def _take(self) -> Wire:
        try:
            return self._idle.pop()
        except IndexError:
            return self._new_wire()

    def _wait(self) -> None:
        pause = PAUSE_SECONDS
        while True:
            time.sleep(pause)
            wire = self._new_wire()
            try:
                wire.send(("PING",))
                wire.reply()
                if keys := [self._doubtful.popleft() for _ in range(len(self._doubtful))]:
                    wire.send(("UNLINK", *keys))
                    wire.reply()
                break
            except RedisError:
                pause = min(2 * pause, LONGEST_ABSENCE_SECONDS)
            finally:
                wire.close()
        self.is_away = False
        log.info("body store %s is back", self.name)


def _id(url: str) -> bytes:
    """Return what is equal for URLs that name the same server and database, whoever asks."""
    parts = RedisUrl.of(url)
    place = f"{parts.hosts} {parts.path} {parts.options.get('db', 0)}"
    found = blake2b(place.encode(), digest_size=len(IN_MEMORY)).digest()
    return found if found != IN_MEMORY else b"\xff" * len(IN_MEMORY)


def token_of(stores: Sequence[Store]) -> str:
    """Return what is equal for those who know the same stores, empty without any."""
    if not stores:
        return ""
    return blake2b(b"".join(sorted(each.id for each in stores)), digest_size=8).hexdigest()
