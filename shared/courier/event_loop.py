"""Reads a wire in gevent's event loop. fast: no switch to a thread of its own and back.

Apart from the subscription, which works without gevent as well.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from threading import Event
from typing import Any

from shared.wire.wire import Wire

READABLE = 1
Pass = Callable[[Any], bool]


class LoopReader:
    """Passes on a wire's unasked messages as they come. One thread waits for the rest."""

    def __init__(self, wire: Wire, watcher: Any) -> None:
        """Read `wire`, which has no replies outstanding, whenever `watcher` says that it can be."""
        self._wire = wire
        self._watcher = watcher
        self._woken = Event()
        self._error: Exception | None = None

    @classmethod
    def of(cls, wire: Wire) -> LoopReader | None:
        """Return a reader of an open wire, None where gevent does not run every thread and it."""
        gevent, monkey = sys.modules.get("gevent"), sys.modules.get("gevent.monkey")
        opened = wire.plain_socket()
        if (
            gevent is None
            or monkey is None
            or opened is None
            or not type(opened).__module__.startswith("gevent.")
            or not monkey.is_module_patched("threading")
        ):
            return None
        opened.setblocking(False)
        return cls(wire, gevent.get_hub().loop.io(opened.fileno(), READABLE))

    def wait(self, pass_on: Pass, seconds: float) -> bool:
        """Call `pass_on` in the loop with each reply, until it returns False for one.

        Returns False when that did not happen for so long. Raises redis.RedisError when the
        connection is lost, and what `pass_on` raises.
        """
        if not self._watcher.active:
            self._pass_all(self._wire.replies_read(), pass_on)  # those that came with the last
            self._watcher.start(lambda: self._pass_all(self._wire.replies_so_far(), pass_on))
        woken = self._woken.wait(seconds)
        self._woken.clear()
        if self._error is not None:
            raise self._error
        return woken

    def close(self) -> None:
        """Stop reading; the wire is left open."""
        self._watcher.stop()
        self._watcher.close()

    def _pass_all(self, replies: Iterable[Any], pass_on: Pass) -> None:
        try:
            for reply in replies:
                if not pass_on(reply):
                    self._woken.set()
        except Exception as error:  # a border: the loop would call this again and again
            self._watcher.stop()
            self._error = error
            self._woken.set()
