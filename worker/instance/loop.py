"""An instance's whole life after loading: claim, answer, publish, until told to stop."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from redis.exceptions import RedisError, ResponseError

from shared.errors import ModelFailed
from shared.messages import InferResult
from shared.request_queue.claimed import Answers, Claimed
from shared.request_queue.model_statistics import encode_costs
from shared.request_queue.worker_end import WorkQueue
from worker.meter import Meter

log = logging.getLogger(__name__)

RETRY_SECONDS = 0.1
MAX_REFUSALS = 5
"""How often answers are sent to a Redis that takes other commands, but not these."""


def run(
    queue: WorkQueue,
    answer: Callable[[list[Claimed]], Answers],
    stop: Callable[[], bool],
    meter: Meter,
    *,
    max_rows: int,
    max_delay_seconds: float,
) -> None:
    """Serve until `stop` returns true; the batch in hand is finished and published first.

    Claims up to `max_rows` at once, or as many as `meter` says that memory holds. Each batch is
    noted in `meter`, by which the supervisor sees one that runs too long, and kills its instance.
    When Redis goes away, waits for it, and puts back what a lost reply may have claimed.
    """
    claimed: list[Claimed] = []
    answers = Answers([], (b"", b""))
    while claimed or not stop():
        rows = meter.row_limit or max_rows
        try:
            if not claimed:
                claimed = queue.claim(rows, max_delay_seconds)
            elif stop():
                queue.publish(claimed, answers)
                return
            else:
                claimed = queue.publish_and_claim(claimed, answers, rows, max_delay_seconds)
        except RedisError as error:
            log.warning("Redis fails, %d answers wait, trying again: %s", len(claimed), error)
            _settle(queue, claimed, answers, stop)
            claimed = []
        if claimed:
            meter.begin_batch()
            answers = answer(claimed)
            meter.end_batch(len(claimed), sum([item.rows for item in claimed]))
            log.debug("answered a batch of %d requests", len(claimed))


def _settle(
    queue: WorkQueue, claimed: list[Claimed], answers: Answers, stop: Callable[[], bool]
) -> None:
    """Once Redis is back: publish what was computed, put back what a lost reply had claimed.

    Answers that a Redis that is there does not take are given up for errors, which it takes.
    """
    refusals = 0
    while True:
        time.sleep(RETRY_SECONDS)
        try:
            if claimed:
                queue.publish(claimed, answers, drop=False)
            queue.put_back()
        except RedisError as error:
            if stop():
                return
            refusals += bool(claimed) and _refuses_only_this(queue, error)
            if refusals == MAX_REFUSALS:
                log.error("Redis does not take %d answers, errors go out: %s", len(claimed), error)
                answers = _given_up(claimed)
        else:
            log.info("Redis is back")
            return


def _refuses_only_this(queue: WorkQueue, error: RedisError) -> bool:
    """Tell whether Redis is there and takes other commands than the one that failed.

    It hangs up on commands that are too large, and says ERR to what is wrong by itself. All other
    codes (READONLY, MISCONF, OOM) are states of its own, which pass.
    """
    if isinstance(error, ResponseError) and not str(error).startswith("ERR "):
        return False
    try:
        queue.probe()
    except RedisError:
        return False
    return True


def _given_up(claimed: list[Claimed]) -> Answers:
    error = ModelFailed("the answer was computed, but Redis did not take it")
    result = InferResult(error=error).encode()
    return Answers([result] * len(claimed), encode_costs(claimed, [], 0.0))
