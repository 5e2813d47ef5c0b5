"""The process of one ensemble instance: claims rows within its budget, until told to stop."""

from __future__ import annotations

import logging
from collections.abc import Callable

import redis
from redis.exceptions import RedisError

from shared.registry.catalog import Catalog
from shared.registry.registry import Registry
from shared.request_queue.claimed import Claimed
from shared.request_queue.keys import QueueKeys
from shared.wire.client import connect
from shared.wire.outage import Outage, rest
from shared.wire.wire import open_wire
from worker.ensembles.ensemble_queue import EnsembleQueue, RowBudget
from worker.ensembles.scheduler import EnsembleScheduler
from worker.ensembles.step_queues import StepQueues
from worker.job import InstanceJob
from worker.meter import Meter
from worker.tracing import WorkerTracing

log = logging.getLogger(__name__)

MAX_ROWS_UNDER_WAY = 256
"""Of one process: enough that its steps' batches are full."""
MAX_BATCHES_UNDER_WAY = 4
"""Or as many of the largest requests, if they have more rows."""
WAIT_SECONDS = 0.5
FINISH_SECONDS = 1.0
"""Given to requests under way after SIGTERM; then they go back to the queue."""


def run_ensemble(
    job: InstanceJob,
    stop: Callable[[], bool],
    meter: Meter,
    wakeup: int | None = None,
    tracing: WorkerTracing | None = None,
) -> None:
    """Serve an ensemble until `stop` returns true, then finish or put back the requests under way.

    The supervisor sees in `meter` when the scheduler does not move any more while requests are
    under way, and kills the process; that its steps take long is no reason, they have limits of
    their own.
    """
    spec, client = job.spec, connect(job.redis_url, job.key_prefix)
    queue, answers = _queue(job, client), _queue(job, client)  # one for each of the two threads
    queue.wakeup = wakeup
    budget = RowBudget(max(MAX_ROWS_UNDER_WAY, MAX_BATCHES_UNDER_WAY * spec.batch_rows))
    catalog = Catalog(Registry(client, job.key_prefix))
    steps = StepQueues(client, job.key_prefix, job.limits, catalog)
    scheduler = EnsembleScheduler(spec, answers, steps, budget, meter, job.id)
    scheduler.tracing = tracing
    scheduler.start()
    outage = Outage(log)
    while not stop():
        free = budget.wait_free(WAIT_SECONDS)
        if free:
            scheduler.begin(_claim(queue, free, budget, stop, outage))
    if not budget.wait_empty(FINISH_SECONDS):
        _put_back(queue)
    scheduler.stop()
    if tracing:
        tracing.close()


def _queue(job: InstanceJob, client: redis.Redis) -> EnsembleQueue:
    return EnsembleQueue(
        open_wire(client),
        QueueKeys.of(job.spec, job.key_prefix),
        job.id,
        result_ttl_seconds=job.result_ttl_seconds,
        cache=job.limits.cache,
    )


def _claim(
    queue: EnsembleQueue,
    rows: int,
    budget: RowBudget,
    stop: Callable[[], bool],
    outage: Outage,
) -> list[Claimed]:
    """Claim up to `rows`; after a lost connection, return the batch of its lost reply."""
    try:
        claimed = queue.claim(rows, 0.0)
        outage.end()
        return claimed
    except RedisError as error:
        pause = outage.note(error, "trying again")
    while not stop():
        rest(pause, stop)
        try:
            found = queue.lost(budget.tickets)
        except RedisError as error:
            pause = outage.note(error, "trying again")
            continue
        if found:
            log.info("%d requests were claimed and not heard of", len(found))
        return found
    return []


def _put_back(queue: EnsembleQueue) -> None:
    """Return all requests under way to the queue, for another process of the ensemble."""
    try:
        back, _ = queue.put_back()
    except RedisError as error:
        log.warning("Redis fails, the supervisor puts back what is under way: %s", error)
    else:
        log.info("%d requests were under way and are put back", back)
