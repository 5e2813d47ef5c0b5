"""Listens to a channel of Redis: answers come without being asked for again and again."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

from shared.event_loop import LoopReader
from shared.redis_connection import Wire

_LENGTH = struct.Struct("<I")
_ID_BYTES = 32
Take = Callable[[bytes], None]


class Subscription:
    """One connection on which one thread listens. Every method may raise redis.RedisError."""

    def __init__(self, wire: Wire, channel: str) -> None:
        """Listen to `channel`; opens nothing before `open`."""
        self._wire = wire
        self._channel = channel
        self._in_loop: LoopReader | None = None

    @property
    def is_open(self) -> bool:
        """Tell whether it listens; what is said while it does not is not heard."""
        return self._wire.is_open()

    def open(self) -> None:
        """Connect, and return once everything that is said from now on will be heard."""
        self._wire.send(("SUBSCRIBE", self._channel))
        self._wire.reply()
        self._in_loop = LoopReader.of(self._wire)

    def close(self) -> None:
        """Stop to listen."""
        if self._in_loop is not None:
            self._in_loop.close()
            self._in_loop = None
        self._wire.close()

    def keep_alive(self) -> None:
        """Have Redis say something, by any thread: without it for 5.5 s, `wait` raises."""
        self._wire.ping()

    def wait(self, take: Take) -> bool:
        """Have `take` called with each message that brings answers, until one comes without.

        Returns True for an empty message, after which stored answers are to be fetched, and False
        for an answer to `keep_alive`. `take` must not block: under gevent it runs in the event
        loop, which saves the switches to this thread and back.
        """
        if self._in_loop is not None:
            return self._in_loop.wait(lambda reply: _passed(reply, take))
        while (ended := _passed(self._wire.reply(), take)) is None:
            pass
        return ended


def _passed(reply: list[bytes], take: Take) -> bool | None:
    kind, *_, said = reply
    if kind != b"message":
        return False
    if not said:
        return True
    take(said)
    return None


def answers_in(said: bytes) -> Iterator[tuple[str, bytes]]:
    """Return the ids and results that `publish.lua` put into one message."""
    position = 0
    while position < len(said):
        begin = position + _ID_BYTES + _LENGTH.size
        (size,) = _LENGTH.unpack_from(said, position + _ID_BYTES)
        yield said[position : position + _ID_BYTES].decode(), said[begin : begin + size]
        position = begin + size
