"""A process's places for work that takes long, and who waits in front of them: in turns."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Event, Lock
from typing import NamedTuple

from api.access.shares import has_its_share
from shared.errors import QueueFull, RequestExpired

PARTS = 4
"""A request waits in line for one part in so many of the time that requests have: who is called has
enough left to be answered in."""
Line = dict[Event, None]
"""Who waits, in order; each is called by its event."""


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
"""Of the request that this thread or greenlet has in hand; `Guard.admit` sets it."""


class FairLine:
    """Places that API keys have in turns, and each key's models in turns; for any thread.

    Whoever sends much to be read so holds up its own requests, and others' by what is in the
    places already. Without keys models have the turns; what names no model counts as one.
    """

    def __init__(self, places: int, most_waiting: int, request_seconds: float) -> None:
        """Have so many `places`, all free, for requests that have so many seconds."""
        self._free = places
        self._most_waiting = most_waiting
        self._seconds = request_seconds / PARTS
        self._changing = Lock()
        self._waiting = 0
        self._lines: dict[str, dict[str, Line]] = {}

    @contextmanager
    def place(self, model: str) -> Iterator[None]:
        """Hold a place, once there is one, for a request to a model.

        Raises QueueFull, at once where too many wait, or too many of the key's.
        """
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
        called = Event()
        with self._changing:
            if self._free:
                self._free -= 1
                return False
            self._check_room(key, model)
            self._lines.setdefault(key, {}).setdefault(model, {})[called] = None
            self._waiting += 1
        is_called = False
        try:
            is_called = called.wait(self._seconds)
        finally:  # also where its greenlet is ended
            if not is_called:
                self._leave(key, model, called)
        if not is_called:
            raise _full()
        return True

    def _check_room(self, key: str, model: str) -> None:
        models = self._lines.get(key, {})
        mine = sum(map(len, models.values())) if key else len(models.get(model, {}))
        free = self._most_waiting - self._waiting
        if free <= 0 or has_its_share(mine, free):
            raise _full()

    def _leave(self, key: str, model: str, called: Event) -> None:
        """Wait no more; who was called meanwhile has the next one called."""
        with self._changing:
            if called.is_set():
                self._call_next()
                return
            self._waiting -= 1
            models = self._lines[key]
            line = models[model]
            del line[called]
            if not line:
                del models[model]
            if not models:
                del self._lines[key]

    def _give_back(self) -> None:
        with self._changing:
            self._call_next()

    def _call_next(self) -> None:
        """Call the first of whose turn it is; these come last from then on."""
        if not self._lines:
            self._free += 1
            return
        key = next(iter(self._lines))
        models = self._lines.pop(key)
        model = next(iter(models))
        line = models.pop(model)
        called = next(iter(line))
        del line[called]
        if line:
            models[model] = line
        if models:
            self._lines[key] = models
        self._waiting -= 1
        called.set()


def _full() -> QueueFull:
    return QueueFull("as many large bodies and texts are read as may be: ask again later")
