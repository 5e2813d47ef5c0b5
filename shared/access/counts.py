"""Counts of one process, added up with those of all others in Redis."""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from contextlib import suppress
from threading import Lock, Thread
from typing import Any

import redis

from shared.errors import FerryError, RedisUnavailable
from shared.wire.client import asking
from shared.wire.outage import Outage

log = logging.getLogger(__name__)

COUNT_SECONDS = 0.5
"""The time for which a process's counts gather before they are written."""


class Counts:
    """Counts by a few words each, in one hash in Redis; for use by many threads.

    They cost Redis one write, at most twice a second, and nothing while there is nothing to count.
    What was not written when the process is killed is lost.
    """

    def __init__(self, client: redis.Redis, key: str) -> None:
        """Add to the hash of this name; opens nothing before the first count."""
        self._client = client
        self._key = key
        # fast: a request costs one append, which no lock has to guard.
        self._new: deque[tuple[str, ...]] = deque()
        self._counts: Counter[tuple[str, ...]] = Counter()
        self._counting = Lock()
        self._is_writing = False
        self._outage = Outage(log)

    def add(self, *words: str) -> None:
        """Count one more of these words, none of which but the last has a colon."""
        self._new.append(words)  # first: who is about to write takes it along
        if self._is_writing:
            return
        with self._counting:
            if self._is_writing:
                return
            self._is_writing = True
        Thread(target=self._write_soon, name="ferry-counts", daemon=True).start()

    def all(self) -> dict[tuple[str, ...], int]:
        """Return what all processes counted; raises RedisUnavailable."""
        self._write()
        rows = asking(lambda: self._client.hgetall(self._key))
        return {
            tuple(field.decode(errors="replace").split(":")): int(number)
            for field, number in rows.items()
        }

    def _write_soon(self) -> None:
        time.sleep(COUNT_SECONDS)
        self._is_writing = False  # first: who finds it true is written below
        try:
            self._write()
        except FerryError as error:
            self._outage.note(error, f"{self._key} is written later")
        else:
            self._outage.end()

    def _write(self) -> None:
        with self._counting:
            with suppress(IndexError):  # which ends it
                self._counts.update(iter(self._new.popleft, None))
            counts, self._counts = self._counts, Counter()
        if not counts:
            return
        try:
            with self._client.pipeline(transaction=False) as opened:
                pipeline: Any = opened
                for words, number in counts.items():
                    pipeline.hincrby(self._key, ":".join(words), number)
                asking(pipeline.execute)
        except RedisUnavailable:
            with self._counting:
                self._counts.update(counts)
            raise
