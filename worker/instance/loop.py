"""An instance's whole life after loading: claim, answer, publish, until told to stop (stop 6)."""

from __future__ import annotations

import logging
from collections.abc import Callable

from redis.exceptions import RedisError

from shared.request_queue.claimed import Claimed, EncodedResults
from shared.request_queue.refusals import MAX_REFUSALS, is_state_of_redis, refusal_errors
from shared.request_queue.worker_end import WorkQueue
from shared.wire.outage import RETRY_SECONDS, Outage, rest
from worker.instance.batch_parts import TurnLost
from worker.instance.passes.lanes import Lane
from worker.meter import Meter

log = logging.getLogger(__name__)


def run(
    queue: WorkQueue,
    answer: Callable[[list[Claimed]], EncodedResults],
    stop: Callable[[], bool],
    meter: Meter | Lane,
    *,
    max_rows: int,
    max_delay_seconds: float,
) -> None:
    """Serve until `stop` returns true; the batch in hand is finished and published first.

    Claims up to `max_rows` at once, or as many as `meter` says that memory holds. When Redis goes
    away, waits for it, and puts back the requests that a lost reply may have claimed. So it does
    with a batch that was not to wait for the device.
    """
    claimed: list[Claimed] = []
    answers = EncodedResults([], (b"", b""))
    outage = Outage(log)
    while claimed or not stop():
        rows = meter.row_limit or max_rows
        try:
            if not claimed:
                claimed = queue.claim(rows, max_delay_seconds)
                stop()  # it may have waited for long: the level of the log is followed before
            elif stop():
                queue.publish(claimed, answers)
                return
            else:
                # fast: one write instead of two (docs/decisions/queue.md, 6)
                claimed = queue.publish_and_claim(claimed, answers, rows, max_delay_seconds)
        except RedisError as error:
            pause = outage.note(error, f"{len(claimed)} answers wait, trying again")
            rest(RETRY_SECONDS if claimed else pause, stop)
            _publish_when_back(queue, claimed, answers, stop, outage)
            claimed = []
        else:
            outage.end()
        if claimed:
            try:
                answers = answer_claimed(claimed, answer, meter)
            except TurnLost:
                claimed = []
                _publish_when_back(queue, claimed, answers, stop, outage)


def answer_claimed(
    claimed: list[Claimed], answer: Callable[[list[Claimed]], EncodedResults], meter: Meter | Lane
) -> EncodedResults:
    """Answer one batch (stop 6), noted in `meter` from its beginning to its end.

    The supervisor reads there which batch runs too long, and kills its instance. Next stop:
    `worker.instance.batch.answer_batch`, which is `answer`.
    """
    meter.begin_batch()
    answers = answer(claimed)
    meter.end_batch(len(claimed), sum([item.rows for item in claimed]))
    log.debug("answered a batch of %d requests", len(claimed))
    return answers


def _publish_when_back(
    queue: WorkQueue,
    claimed: list[Claimed],
    answers: EncodedResults,
    stop: Callable[[], bool],
    outage: Outage,
) -> None:
    """Publish the answers once Redis is back, and put back the requests of a lost reply.

    Errors take the place of answers that Redis refuses while it takes other commands.
    """
    refusals = tries = 0
    while True:
        try:
            if claimed:
                # The publish that failed may have been done, and the claim behind it too: `drop`
                # would then take the next batch for this one.
                queue.publish(claimed, answers, drop=False)
            queue.put_back()
        except RedisError as error:
            if stop():
                return
            refusals += bool(claimed) and _refuses_only_this(queue, error)
            if refusals == MAX_REFUSALS:
                log.error("Redis does not take %d answers, errors go out: %s", len(claimed), error)
                answers = refusal_errors(claimed)
            tries += 1
            pause = outage.note(error, "trying again")
            # Somebody waits for the answers, so Redis is asked often, but not for ever.
            rest(RETRY_SECONDS if claimed and tries < 2 * MAX_REFUSALS else pause, stop)
        else:
            return


def _refuses_only_this(queue: WorkQueue, error: RedisError) -> bool:
    """Tell whether Redis is there and takes other commands than the one that failed.

    Besides saying ERR, it hangs up on commands that are too large: so another one is tried.
    """
    if is_state_of_redis(error):
        return False
    try:
        queue.probe()
    except RedisError:
        return False
    return True
