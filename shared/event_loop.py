"""Reads a wire in gevent's event loop, where there is one: a thread less to switch to and from."""

from __future__ import annotations

import sys
from collections.abc import Callable
from threading import Event
from typing import Any

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from shared.redis_connection import COMMAND_TIMEOUT_SECONDS, LONGEST_BLOCK_SECONDS, Wire

READABLE = 1
SILENCE_SECONDS = LONGEST_BLOCK_SECONDS + COMMAND_TIMEOUT_SECONDS
Pass = Callable[[Any], bool | None]


class LoopReader:
    """Passes on what a wire's server says by itself, as it comes. One thread waits for its end."""

    def __init__(self, wire: Wire, watcher: Any) -> None:
        """Read `wire`, which has no replies outstanding, whenever `watcher` says that it can be."""
        self._wire = wire
        self._watcher = watcher
        self._woken = Event()
        self._ended: bool | None = None
        self._error: RedisError | None = None

    @classmethod
    def of(cls, wire: Wire) -> LoopReader | None:
        """Return a reader of an open wire, None when its socket is not a plain one of gevent's."""
        gevent, opened = sys.modules.get("gevent"), wire.plain_socket()
        if gevent is None or opened is None or not type(opened).__module__.startswith("gevent."):
            return None
        opened.setblocking(False)
        return cls(wire, gevent.get_hub().loop.io(opened.fileno(), READABLE))

    def wait(self, pass_on: Pass) -> bool:
        """Have `pass_on` called with each reply in the loop, until it does not return None.

        Returns what it returned last. Raises redis.RedisError when the connection is lost or
        nothing is said for 5.5 s.
        """
        if not self._watcher.active:
            self._watcher.start(self._read, pass_on)
        if not self._woken.wait(SILENCE_SECONDS):
            raise RedisConnectionError("Redis says nothing any more")
        self._woken.clear()
        if self._error is not None:
            raise self._error
        ended, self._ended = self._ended, None
        return bool(ended)

    def close(self) -> None:
        """Stop reading; the wire is left open."""
        self._watcher.stop()
        self._watcher.close()

    def _read(self, pass_on: Pass) -> None:
        try:
            for reply in self._wire.replies_so_far():
                ended = pass_on(reply)
                if ended is not None:
                    self._ended = self._ended or ended
                    self._woken.set()
        except Exception as error:  # a border: the loop would call this again and again
            self._watcher.stop()
            self._error = error if isinstance(error, RedisError) else RedisError(str(error))
            self._woken.set()
