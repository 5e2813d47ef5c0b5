"""Takes answers' tensors out of body stores, in a thread of its own: the event loop cannot wait."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from threading import Event, Thread

from shared.bodies.stored import BodyShelf

log = logging.getLogger(__name__)

MAX_ANSWERS = 64
"""Read at once: those that come meanwhile are read together next."""
TIDY_SECONDS = 0.05
"""The interval at which the shelf is tidied while no answer is to be fetched."""
BUSY_TIDY_SECONDS = 1.0
"""The same while answers come all the time: it may wait for a store."""
Pass = Callable[[str, bytes, memoryview | None], None]


class Fetcher:
    """One thread, until it is closed. It keeps the shelf tidy as well."""

    def __init__(self, shelf: BodyShelf, pass_on: Pass) -> None:
        """Pass on each answer with what lies beside it, or None.

        subtle: the thread is started here, since `add` is called in the event loop, where none can
        be: its start is waited for.
        """
        self._shelf = shelf
        self._pass_on = pass_on
        self._wanted = deque[tuple[str, bytes]]()
        self._more = Event()
        self._is_closed = False
        self._tidied_at = 0.0
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
            try:
                if not self._wanted:
                    self._more.wait(TIDY_SECONDS)
                    self._more.clear()
                self._fetch()
                pause = BUSY_TIDY_SECONDS if self._wanted else TIDY_SECONDS
                if time.monotonic() - self._tidied_at >= pause:
                    self._tidied_at = time.monotonic()
                    self._shelf.tidy()
            except Exception:  # a border: no answer would be fetched any more
                log.exception("what lies in body stores is not tidied; the next time")
                time.sleep(TIDY_SECONDS)

    def _fetch(self) -> None:
        """Pass on what was added by now; what cannot be read is as good as lost."""
        count = min(len(self._wanted), MAX_ANSWERS)
        answers = [self._wanted.popleft() for _ in range(count)]
        found: list[memoryview | None] = [None] * count
        try:
            if answers:
                found = self._shelf.take(answers)
        except Exception:  # a border: these requests would never be answered
            log.exception("%d answers cannot be read; they are asked for again", count)
        for (request_id, answer), beside in zip(answers, found, strict=True):
            try:
                self._pass_on(request_id, answer, beside)
            except Exception:  # a border: nor would the others
                log.exception("request %s waits until its deadline", request_id)
