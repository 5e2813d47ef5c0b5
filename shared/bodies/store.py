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

from shared.messages import IN_MEMORY, Buffers
from shared.redis_urls import RedisUrl
from shared.wire.client import connect, public_url
from shared.wire.packing import Command
from shared.wire.wire import Wire

log = logging.getLogger(__name__)

CONNECT_SECONDS = 0.2
COMMAND_SECONDS = 0.5
"""Who does not answer for so long is away."""
BYTES_PER_SECOND = 50e6
"""So much longer may it take for what is large."""
LARGE_EXCHANGE_BYTES = 2**20
"""Who fails with so much is asked for a small reply before it is taken to be away."""
PLACE_SECONDS = 0.25
"""Who finds no connection free for so long goes without the store."""
PAUSE_SECONDS = 0.5
LONGEST_ABSENCE_SECONDS = 5.0
"""The pauses before a store that is away is asked whether it is back; each is twice the last."""
MAX_DOUBTFUL = 10_000
"""Keys; what is beyond expires."""
MAX_WIRES = 8
"""Connections of one process to one store on which is written; as many on which is read."""
MAX_LOGGED = 200


@dataclass
class Begun:
    """Commands that were written to a store, `count` in all, and whose replies are to be read.

    They have, or ask for, so many bytes of tensors, and were to be written `until` then.
    """

    wire: Wire
    places: BoundedSemaphore
    count: int
    size: int
    until: float
    is_broken: bool = False


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
        self._is_full = False
        self._full_until = 0.0
        client = connect(url, command_seconds=COMMAND_SECONDS, connect_seconds=CONNECT_SECONDS)
        make_connection = client.connection_pool.make_connection
        self._new_wire = partial(Wire, make_connection, (), COMMAND_SECONDS)
        self._idle = deque[Wire]()
        self._writing = BoundedSemaphore(MAX_WIRES)
        self._reading = BoundedSemaphore(MAX_WIRES)
        self._failing = Lock()
        self._doubtful = deque[str](maxlen=MAX_DOUBTFUL)

    @property
    def takes(self) -> bool:
        """Tell whether something can be written to it, as far as is known."""
        return not self.is_away and time.monotonic() >= self._full_until

    def ask(self, *commands: Command) -> list[Any]:
        """Return the replies to commands, as `replies` does; both within the time for one."""
        begun = self.begin(*commands)
        return self.replies(begun, begun.until if begun else None)

    def begin(self, *commands: Command, awaited_bytes: int | None = None) -> Begun | None:
        """Write commands; None where that fails. Their `replies` must be read.

        Those that ask for tensors, of `awaited_bytes`, do not wait for others' that are written.
        """
        if self.is_away:
            return None
        places = self._writing if awaited_bytes is None else self._reading
        if not places.acquire(timeout=PLACE_SECONDS):
            return None
        size = _size(commands)
        until = time.monotonic() + _seconds(size)
        begun = Begun(self._take(), places, len(commands), size + (awaited_bytes or 0), until)
        is_sent = False
        try:
            if not self.is_away:  # it may be by now
                begun.wire.until = until
                begun.wire.send(*commands)
                is_sent = True
        except RedisError as error:
            self._give_up(begun, error)
        finally:
            if not is_sent:
                self._end(begun, is_settled=False)
        return begun if is_sent else None

    def go_on(self, begun: Begun, *commands: Command) -> None:
        """Write more commands behind those that were begun."""
        begun.count += len(commands)
        begun.size += _size(commands)
        if begun.is_broken:
            return
        begun.is_broken = True
        try:
            begun.wire.until = time.monotonic() + _seconds(_size(commands))
            begun.wire.send_behind(*commands)
            begun.is_broken = False
        except RedisError as error:
            self._give_up(begun, error)

    def replies(self, begun: Begun | None, until: float | None = None) -> list[Any]:
        """Return the replies, error replies as they are; none where the store is away.

        They must have come by the monotonic time `until`, else within the time for all that was
        begun, from now on.
        """
        if begun is None:
            return []
        found, is_settled = list[Any](), False
        begun.wire.until = until or time.monotonic() + _seconds(begun.size)
        try:
            while len(found) < begun.count and not begun.is_broken:
                try:
                    found.append(begun.wire.reply())
                except ResponseError as error:
                    found.append(error)
            is_settled = begun.wire.is_settled
        except RedisError as error:
            self._give_up(begun, error)
            found.clear()
        finally:
            self._end(begun, is_settled=is_settled)
        return found if len(found) == begun.count else []

    def _end(self, begun: Begun, *, is_settled: bool) -> None:
        """Leave the connection to the next one, unless anything may still come on it."""
        if is_settled and not self.is_away:
            self._idle.append(begun.wire)
        else:
            begun.wire.close()
        begun.places.release()

    def _give_up(self, begun: Begun, error: RedisError) -> None:
        """Leave the store, unless only what was large failed."""
        if begun.size >= LARGE_EXCHANGE_BYTES and self._answers():
            log.info("body store %s: %d bytes go through Redis: %s", self.name, begun.size, error)
        else:
            self.fail(error)

    def doubt(self, keys: Sequence[str]) -> None:
        """Remove keys once it answers again: it may have taken what was sent before it failed."""
        self._doubtful.extend(keys)

    def took(self, reply: object) -> bool:
        """Tell whether the reply to a SET says that it was taken; else write nothing for a moment.

        It is full, or does not let us.
        """
        if reply != b"OK":
            self.refuse(reply)
            return False
        if self._is_full:
            self._is_full = False
            log.info("body store %s takes bodies again", self.name)
        return True

    def refuse(self, error: object) -> None:
        """Write nothing to it for a moment; one line in the log until it takes something again."""
        if not self._is_full:
            self._is_full = True
            text = str(error)[:MAX_LOGGED]
            log.warning("body store %s: %s; large bodies go through Redis", self.name, text)
        self._full_until = time.monotonic() + PAUSE_SECONDS

    def fail(self, error: RedisError) -> None:
        """Leave it, until it answers again."""
        with self._failing:
            if self.is_away:
                return
            self.is_away = True
        text = str(error)[:MAX_LOGGED]
        log.warning("body store %s: %s; large bodies go through Redis", self.name, text)
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
        time.sleep(pause)
        while not self._answers():
            pause = min(2 * pause, LONGEST_ABSENCE_SECONDS)
            time.sleep(pause)
        self.is_away = False
        log.info("body store %s is back", self.name)

    def _answers(self) -> bool:
        """Ask on another connection; remove what it may have taken before it failed."""
        wire, keys = self._new_wire(), list[str]()
        with suppress(IndexError):
            while True:
                keys.append(self._doubtful.popleft())
        commands: list[Command] = [("UNLINK", *keys)] if keys else []
        try:
            wire.until = time.monotonic() + COMMAND_SECONDS
            wire.send(("PING",), *commands)
            is_there: bool = wire.reply() == b"PONG"
            for _ in commands:
                wire.reply()
            return is_there
        except RedisError:
            self.doubt(keys)
            return False
        finally:
            wire.close()


def _seconds(size: int) -> float:
    """Return how long so many bytes may take."""
    return COMMAND_SECONDS + size / BYTES_PER_SECOND


def _size(commands: Sequence[Command]) -> int:
    """Return the bytes of tensors in commands."""
    return sum(
        sum(map(len, argument))
        for command in commands
        if isinstance(command, tuple)
        for argument in command
        if isinstance(argument, Buffers)
    )


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
