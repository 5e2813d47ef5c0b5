"""Sends copies of answered requests to a shadow version and compares the answers.

Nobody waits for a shadow: its copy is pushed once the request is answered, at the lowest priority,
and when too many are under way no further one is.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from threading import Event, Lock, Thread
from typing import NamedTuple

from api.infer.question import Question
from shared.errors import FerryError, RedisUnavailable
from shared.messages import InferResult
from shared.operations.shadow_comparison import Comparison, Comparisons, compared
from shared.request_queue.api_end import PendingRequest

log = logging.getLogger(__name__)

Push = Callable[[Question], PendingRequest]

MAX_COPIES = 64
"""Copies that one process has under way; with more, the shadow is too slow for the load."""


class Copy(NamedTuple):
    """A request that a shadow is asked as well: both versions, and the answer that was given."""

    shadow_key: str
    version: str
    answer: InferResult
    waiting: PendingRequest


class Shadowing:
    """One thread that reads the shadows' answers in the order in which they were asked."""

    def __init__(self, comparisons: Comparisons, push: Push) -> None:
        """Count into `comparisons`, ask by `push`; the thread starts with the first copy."""
        self._comparisons = comparisons
        self._push = push
        self._copies: deque[Copy] = deque()
        self._skipped: dict[tuple[str, str], int] = {}
        self._more = Event()
        self._starting = Lock()
        self._started = False

    def copy(self, question: Question, version: str, answer: InferResult) -> None:
        """Ask a shadow the `question` that `version` answered; never fails, and never waits."""
        shadow_key = question.spec.key
        if len(self._copies) >= MAX_COPIES:
            key = (shadow_key, version)
            self._skipped[key] = self._skipped.get(key, 0) + 1
            return
        try:
            self._copies.append(Copy(shadow_key, version, answer, self._push(question)))
        except FerryError as error:
            log.debug("%s gets no copy: %s", shadow_key, error)
            return
        if not self._started:
            self._start()
        self._more.set()

    def _start(self) -> None:
        with self._starting:
            if not self._started:
                Thread(target=self._compare_forever, name="ferry-shadow", daemon=True).start()
                self._started = True

    def _compare_forever(self) -> None:
        while True:
            self._more.wait()
            self._more.clear()
            while self._copies:
                copy = self._copies[0]
                counted = self._compare(copy)
                self._copies.popleft()
                self._count(copy, counted)

    def _compare(self, copy: Copy) -> Comparison:
        try:
            return compared(copy.answer, copy.waiting.wait())
        except FerryError as error:
            log.debug("the shadow %s failed: %s", copy.shadow_key, error)
        except Exception:  # a border: whatever a shadow answers, the next ones are compared
            log.exception("an answer of the shadow %s is counted as failed", copy.shadow_key)
        return Comparison(request_count=1, failed_count=1)

    def _count(self, copy: Copy, counted: Comparison) -> None:
        skipped = self._skipped.pop((copy.shadow_key, copy.version), 0)
        try:
            self._comparisons.add(
                copy.shadow_key, copy.version, counted._replace(skipped_count=skipped)
            )
        except RedisUnavailable as error:
            log.debug("a comparison is lost: %s", error)
