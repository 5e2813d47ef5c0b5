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
    while not stop():
        try:
            claimed = queue.claim(max_rows, max_delay_seconds)
        except RedisError as error:
            log.warning("claim failed, trying again: %s", error)
            _put_back(queue, stop)
            continue
        if not claimed:
            continue
        busy_since.value = time.monotonic()
        results = answer(claimed)
        _publish(queue, claimed, results, stop)
        busy_since.value = 0.0


def _publish(
    queue: WorkQueue, claimed: list[Claimed], results: list[bytes], stop: Callable[[], bool]
) -> None:
    """Publish, trying again while Redis is away; the supervisor ends an instance that tries too long."""
    while True:
        try:
            first = queue.publish(claimed, results)
        except RedisError as error:
            log.warning("publish of %d answers failed, trying again: %s", len(claimed), error)
            time.sleep(RETRY_SECONDS)
            if stop():
                return
        else:
            log.debug("published %d answers, %d were the first", len(claimed), first)
            return


def _put_back(queue: WorkQueue, stop: Callable[[], bool]) -> None:
    while not stop():
        time.sleep(RETRY_SECONDS)
        try:
            queue.put_back()
        except RedisError:
            continue
        log.info("Redis is back")
        return
