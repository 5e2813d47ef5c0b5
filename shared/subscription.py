"""Listens to a channel of Redis: answers come without being asked for again and again."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from shared.redis_connection import Wire

_LENGTH = struct.Struct("<I")
_ID_BYTES = 32


class Subscription:
    """One connection on which one thread listens. Every method may raise redis.RedisError."""

    def __init__(self, wire: Wire, channel: str) -> None:
        """Listen to `channel`; opens nothing before `open`."""
        self._wire = wire
        self._channel = channel

    @property
    def is_open(self) -> bool:
        """Tell whether it listens; what is said while it does not is not heard."""
        return self._wire.is_open()

    def open(self) -> None:
        """Connect, and return once everything that is said from now on will be heard."""
        self._wire.send(("SUBSCRIBE", self._channel))
        self._wire.reply()

    def close(self) -> None:
        """Stop to listen."""
        self._wire.close()

    def keep_alive(self) -> None:
        """Have Redis say something, by any thread: without it for 5.5 s, `heard` raises."""
        self._wire.ping()

    def heard(self) -> bytes | None:
        """Wait for what is said next and return it; None for an answer to `keep_alive`."""
        kind, *_, said = self._wire.reply()
        return said if kind == b"message" else None


def answers_in(said: bytes) -> Iterator[tuple[str, bytes]]:
    """Return the ids and results that `publish.lua` put into one message."""
    position = 0
    while position < len(said):
        begin = position + _ID_BYTES + _LENGTH.size
        (size,) = _LENGTH.unpack_from(said, position + _ID_BYTES)
        yield said[position : position + _ID_BYTES].decode(), said[begin : begin + size]
        position = begin + size
