"""Takes answers' tensors out of body stores, in a thread of its own: the event loop cannot wait."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from threading import Event, Thread

from shared.bodies.stored import BodyShelf

log = logging.getLogger(__name__)

MAX_ANSWERS = 64
"""Read at once: those that come meanwhile are read together next."""
Pass = Callable[[str, bytes, memoryview | None], None]


class Fetcher:
    """One thread, until it is closed."""

    def __init__(self, shelf: BodyShelf, pass_on: Pass) -> None:
        """Pass on each answer with what lies beside it, or None, which must not raise."""
        self._shelf = shelf
        self._pass_on = pass_on
        self._wanted = deque[tuple[str, bytes]]()
        self._more = Event()
        self._is_closed = False
        # subtle: not at the first answer, which may come in the event loop: a start is waited for.
        Thread(target=self._run, name="ferry-fetch", daemon=True).start()

    def add(self, request_id: str, answer: bytes) -> None:
        """Fetch what lies beside an answer, soon; returns at once."""
        self._wanted.append((request_id, answer))
        self._more.set()

    def close(self) -> None:
        """End the thread, once it has passed on what was added."""
        self._is_closed = True
        self._more.set()

    def _run(self) -> None:
        while self._wanted or not self._is_closed:
            if not self._wanted:
                self._more.wait()
                self._more.clear()
                continue
            count = min(len(self._wanted), MAX_ANSWERS)
            answers = [self._wanted.popleft() for _ in range(count)]
            for (request_id, answer), found in zip(answers, self._shelf.take(answers), strict=True):
                self._pass_on(request_id, answer, found)
