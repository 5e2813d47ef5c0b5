"""A process's places for work that takes long, and who waits in front of them: in turns."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Event, Lock
from typing import NamedTuple

from shared.errors import QueueFull, RequestExpired


class Asking(NamedTuple):
    """Who asks, by the id of an API key, none without keys, and how long it waited in lines."""

    key: str = ""
    waited_seconds: float = 0.0

    def left_of(self, seconds: float) -> float:
        """Return what is left of so many seconds since it came; raises RequestExpired."""
        if self.waited_seconds >= seconds:
            raise RequestExpired("Request timeout expired")
        return seconds - self.waited_seconds


UNKEYED = Asking()
ASKING: ContextVar[Asking] = ContextVar("ASKING", default=UNKEYED)
"""Of the request that this thread or greenlet has in hand."""


class _Waiter:
    def __init__(self) -> None:
        self.called = Event()
        self.has_left = False


class FairLine:
    """Places that API keys have in turns, and each key's models in turns; for any thread.

    Whoever sends much to be read so holds up its own requests, and others' by what is in the
    places already.
    """

    def __init__(self, places: int, seconds: float) -> None:
        """Have so many `places`, all free, for each of which one waits so many `seconds`."""
        self._free = places
        self._seconds = seconds
        self._changing = Lock()
        self._waiting: dict[str, dict[str, deque[_Waiter]]] = {}

    @property
    def has_room(self) -> bool:
        """Tell whether who comes now need not wait."""
        return self._free > 0

    @contextmanager
    def place(self, model: str) -> Iterator[None]:
        """Hold a place, once there is one, for a request to a model; raises QueueFull."""
        began, asking = time.monotonic(), ASKING.get()
        if self._take(asking.key, model):
            waited_seconds = asking.waited_seconds + time.monotonic() - began
            ASKING.set(asking._replace(waited_seconds=waited_seconds))
        try:
            yield
        finally:
            self._give_back()

    def _take(self, key: str, model: str) -> bool:
        """Take a place, and tell whether it had to be waited for."""
        with self._changing:
            if self._free:
                self._free -= 1
                return False
            waiter = _Waiter()
            self._waiting.setdefault(key, {}).setdefault(model, deque()).append(waiter)
        try:
            if waiter.called.wait(self._seconds):
                return True
        except BaseException:  # its greenlet is ended
            self._leave(waiter)
            raise
        self._leave(waiter)
        raise QueueFull("as many large bodies and texts are read as may be: ask again later")

    def _leave(self, waiter: _Waiter) -> None:
        """Wait no more; whoever was called meanwhile has the next one called."""
        with self._changing:
            waiter.has_left = True
            was_called = waiter.called.is_set()
        if was_called:
            self._give_back()

    def _give_back(self) -> None:
        with self._changing:
            while (waiter := self._next()) is not None:
                if not waiter.has_left:
                    waiter.called.set()
                    return
            self._free += 1

    def _next(self) -> _Waiter | None:
        """Take the first of whose turn it is out of the line; they come last from then on."""
        if not self._waiting:
            return None
        key = next(iter(self._waiting))
        models = self._waiting.pop(key)
        model = next(iter(models))
        line = models.pop(model)
        waiter = line.popleft()
        if line:
            models[model] = line
        if models:
            self._waiting[key] = models
        return waiter
