"""The process of one ensemble instance: claims what it has seats for, until told to stop."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from redis.exceptions import RedisError

from shared.model_spec import ModelSpec
from shared.registry.catalog import Catalog
from shared.registry.registry import Registry
from shared.request_queue.claimed import Claimed
from shared.request_queue.commands import Limits
from shared.request_queue.keys import QueueKeys
from shared.wire.client import connect
from shared.wire.wire import open_wire
from worker.ensembles.conductor import Conductor
from worker.ensembles.step_queues import StepQueues
from worker.ensembles.work import EnsembleQueue, Seats
from worker.meter import Meter

log = logging.getLogger(__name__)

SEATS = 256
"""How many rows are under way in one process: enough that its steps' batches are full."""
SEATS_PER_BATCH = 4
"""Or as many of the largest requests."""
WAIT_SECONDS = 0.5
RETRY_SECONDS = 0.1
LEAVE_SECONDS = 1.0
"""How long what is under way may take after SIGTERM; then it goes back to the queue."""


def run_ensemble(  # noqa: PLR0913  what the process is told
    spec: ModelSpec,
    instance: str,
    stop: Callable[[], bool],
    meter: Meter,
    *,
    redis_url: str,
    key_prefix: str,
    limits: Limits,
    result_ttl_seconds: float,
) -> None:
    """Serve an ensemble until `stop` returns true, then finish or put back what is under way.

    `limits` are those of a step's queue. The supervisor sees in `meter` when the conductor does not
    move any more while requests are under way, and kills the process; that its steps take long is
    no reason, they have limits of their own.
    """
    client = connect(redis_url)
    keys = QueueKeys(key_prefix, spec.key, spec.levels, cached=spec.cached)
    queue, answers = (
        EnsembleQueue(
            open_wire(client),
            keys,
            instance,
            result_ttl_seconds=result_ttl_seconds,
            cache=limits.cache,
        )
        for _ in range(2)
    )
    seats = Seats(max(SEATS, SEATS_PER_BATCH * spec.batch_rows))
    catalog = Catalog(Registry(client, key_prefix))
    steps = StepQueues(client, key_prefix, limits, catalog)
    conductor = Conductor(spec, answers, steps, seats, meter, instance)
    conductor.start()
    while not stop():
        free = seats.wait_free(WAIT_SECONDS)
        if free:
            conductor.begin(_claim(queue, free, seats, stop))
    if not seats.wait_empty(LEAVE_SECONDS):
        _put_back(queue)
    conductor.stop()


def _claim(
    queue: EnsembleQueue, rows: int, seats: Seats, stop: Callable[[], bool]
) -> list[Claimed]:
    """Claim what is there for so many rows; after a lost connection, what a lost reply claimed."""
    try:
        return queue.claim(rows, 0.0)
    except RedisError as error:
        log.warning("Redis fails, trying again: %s", error)
    while not stop():
        time.sleep(RETRY_SECONDS)
        try:
            found = queue.lost(seats.tickets)
        except RedisError:
            continue
        log.info("Redis is back, %d requests were claimed and not heard of", len(found))
        return found
    return []


def _put_back(queue: EnsembleQueue) -> None:
    """Return what is under way to the queue, for whoever serves the ensemble next."""
    try:
        back, _ = queue.put_back()
    except RedisError as error:
        log.warning("Redis fails, the supervisor puts back what is under way: %s", error)
    else:
        log.info("%d requests were under way and are put back", back)
