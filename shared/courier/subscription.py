"""Listens to a channel of Redis. fast: answers come without being asked for."""

from __future__ import annotations

import logging
import struct
import time
from collections.abc import Callable, Iterator

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from shared.courier.event_loop import LoopReader
from shared.ticket import ID_BYTES
from shared.wire.client import COMMAND_TIMEOUT_SECONDS
from shared.wire.wire import Wire

log = logging.getLogger(__name__)

QUIET_SECONDS = 0.5
"""After so long without a word Redis is asked for one."""
POLL_SECONDS = 0.02
_LENGTH = struct.Struct("<I")
Take = Callable[[bytes], None]


class Subscription:
    """One connection, for one thread. Every method may raise redis.RedisError."""

    def __init__(self, wire: Wire, channel: str) -> None:
        """Listen to `channel`; opens nothing before `open`."""
        self._wire = wire
        self.channel = channel
        self._in_loop: LoopReader | None = None
        self._heard_at = 0.0
        self._refused = False

    @property
    def is_open(self) -> bool:
        """Tell whether it listens; messages meanwhile are lost when it does not."""
        return self._wire.is_open

    def open(self) -> None:
        """Connect, and return once everything that is said from now on will be heard.

        Where Redis does not let us listen, `wait` only sleeps: the caller looks for stored answers.
        """
        self._wire.send(("SUBSCRIBE", self.channel))
        self._heard_at = time.monotonic()
        try:
            self._wire.reply()
        except ResponseError as error:
            log.warning("answers are looked for every %.2f s: %s", POLL_SECONDS, error)
            self._refused = True
            return
        self._refused = False
        self._in_loop = LoopReader.of(self._wire)

    def close(self) -> None:
        """Close the connection, and stop reading it in the event loop."""
        if self._in_loop is not None:
            self._in_loop.close()
            self._in_loop = None
        self._wire.close()

    def wait(self, take: Take) -> None:
        """Call `take` with each message that brings answers, until anything else happens.

        Returns for an empty message, which says that answers are stored, and twice a second in any
        case. `take` must not block: under gevent it runs in the event loop, which saves the
        switches to this thread and back. Raises RedisError when nothing is said for 3.5 s.
        """
        if self._refused:
            time.sleep(POLL_SECONDS)
        elif self._in_loop is not None:
            if self._in_loop.wait(lambda reply: _passed(reply, take), QUIET_SECONDS):
                self._heard_at = time.monotonic()
            else:
                self.ask()
        elif self._wire.has_reply(QUIET_SECONDS):
            self._heard_at = time.monotonic()
            while _passed(self._wire.reply(), take) and self._wire.has_reply(QUIET_SECONDS):
                pass
        else:
            self.ask()

    def ask(self) -> None:
        """Send PING: its reply comes behind all that Redis has said so far, and ends a `wait`."""
        if self._refused:
            return
        if time.monotonic() - self._heard_at > QUIET_SECONDS + COMMAND_TIMEOUT_SECONDS:
            raise RedisConnectionError("Redis says nothing any more")
        self._wire.send_behind(("PING",))


def _passed(reply: list[bytes], take: Take) -> bool:
    """Tell whether it was a message that brings answers."""
    kind, *_, said = reply
    if kind != b"message" or not said:
        return False
    take(said)
    return True


def answers_in(said: bytes) -> Iterator[tuple[str, bytes]]:
    """Return the ids and results that `publish.lua` put into one message."""
    position = 0
    while position < len(said):
        begin = position + ID_BYTES + _LENGTH.size
        (size,) = _LENGTH.unpack_from(said, position + ID_BYTES)
        yield said[position : position + ID_BYTES].decode(), said[begin : begin + size]
        position = begin + size
