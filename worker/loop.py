"""An instance's whole life after loading: claim, answer, publish, until told to stop."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Protocol

from redis.exceptions import RedisError

from shared.request_queue import Claimed, WorkQueue

log = logging.getLogger(__name__)

RETRY_SECONDS = 0.1


class Clock(Protocol):
    """Where the instance writes when its batch began (monotonic seconds), 0 between batches.

    The supervisor reads it and kills an instance whose batch runs too long.
    """

    value: float


def run(
    queue: WorkQueue,
    answer: Callable[[list[Claimed]], list[bytes]],
    stop: Callable[[], bool],
    busy_since: Clock,
    *,
    max_rows: int,
    max_delay_seconds: float,
) -> None:
    """Serve until `stop` returns true; the batch in hand is finished and published first.

    When Redis goes away, waits for it, and puts back what a lost reply may have claimed.
    """
    claimed: list[Claimed] = []
    results: list[bytes] = []
    while claimed or not stop():
        try:
            if not claimed:
                claimed = queue.claim(max_rows, max_delay_seconds)
            elif stop():
                queue.publish(claimed, results)
                return
            else:
                claimed = queue.publish_and_claim(claimed, results, max_rows, max_delay_seconds)
        except RedisError as error:
            log.warning("Redis fails, %d answers wait, trying again: %s", len(claimed), error)
            _settle(queue, claimed, results, stop)
            claimed = []
        if claimed:
            busy_since.value = time.monotonic()
            results = answer(claimed)
            busy_since.value = 0.0
            log.debug("answered a batch of %d requests", len(claimed))


def _settle(
    queue: WorkQueue, claimed: list[Claimed], results: list[bytes], stop: Callable[[], bool]
) -> None:
    """Once Redis is back: publish what was computed, put back what a lost reply had claimed."""
    while True:
        time.sleep(RETRY_SECONDS)
        try:
            if claimed:
                queue.publish(claimed, results, drop=False)
            queue.put_back()
        except RedisError:
            if stop():
                return
        else:
            log.info("Redis is back")
            return
