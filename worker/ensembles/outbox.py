"""Hands out answers: what gathers goes in one write, and again when Redis was away."""

from __future__ import annotations

import logging
import time

from redis.exceptions import RedisError, ResponseError

from shared.errors import ModelFailed
from worker.ensembles.run import failed
from worker.ensembles.work import EnsembleQueue, Finished, Seats
from worker.meter import Meter

log = logging.getLogger(__name__)

RETRY_SECONDS = 0.1
MAX_REFUSALS = 5
"""How often an answer is sent to a Redis that takes others, but not this one."""


class Outbox:
    """The answers that are not published yet; used by the conductor's thread only."""

    def __init__(self, queue: EnsembleQueue, seats: Seats, meter: Meter) -> None:
        """Publish to `queue`; what was published leaves its seats and is counted in `meter`."""
        self.waiting: list[Finished] = []
        self.next_try = 0.0
        self._queue = queue
        self._seats = seats
        self._meter = meter
        self._refusals: dict[str, int] = {}

    def add(self, finished: Finished) -> None:
        """Have an answer published with the next ones."""
        self.waiting.append(finished)

    def publish(self) -> None:
        """Hand out the answers that are there (stop 7), unless Redis just failed to take them."""
        if not self.waiting or time.monotonic() < self.next_try:
            return
        try:
            refusals = self._queue.publish_each(self.waiting)
        except RedisError as error:
            log.warning("Redis fails, %d answers wait, trying again: %s", len(self.waiting), error)
            self.next_try = time.monotonic() + RETRY_SECONDS
            return
        tried, self.waiting = self.waiting, []
        for one, refusal in zip(tried, refusals, strict=True):
            if refusal is None:
                self._leave(one)
            else:
                self.waiting.append(self._after_refusal(one, refusal))
        self.next_try = time.monotonic() + RETRY_SECONDS if self.waiting else 0.0

    def _leave(self, one: Finished) -> None:
        self._seats.leave(one.tickets)
        self._refusals.pop(one.claimed.id, None)
        self._meter.answered_count += 1
        self._meter.row_count += one.claimed.rows
        self._meter.batch_count += 1
        self._meter.last_batch_rows = one.claimed.rows

    def _after_refusal(self, one: Finished, refusal: ResponseError) -> Finished:
        """Return what to publish instead of an answer that Redis, while it is there, refuses.

        Only ERR says that it is the answer's fault; all other codes are states of Redis's own.
        """
        count = self._refusals.get(one.claimed.id, 0) + str(refusal).startswith("ERR ")
        self._refusals[one.claimed.id] = count
        if count != MAX_REFUSALS:
            return one
        log.error("Redis does not take an answer, its error goes out: %s", refusal)
        error = ModelFailed("the answer was computed, but Redis did not take it")
        return failed(one.claimed, error, time.monotonic(), list(one.tickets))
