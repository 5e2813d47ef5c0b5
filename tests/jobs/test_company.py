"""A job's requests are as large as a batch, and smaller as long as others ask the model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest
from aged_queue import AgedQueue, Asked
from redis import Redis

from jobs.bulk import company
from jobs.bulk.company import Company, requests_of_others
from shared.request_queue.model_statistics import Totals
from shared.settings import Settings
from shared.wire.client import connect

BATCH, PART = 8, 4


@pytest.fixture
def queue(settings: Settings) -> Iterator[AgedQueue]:
    with connect(settings.redis_url) as redis:
        asked = AgedQueue(settings, redis)
        with closing(asked):
            yield asked


def answer(queue: AgedQueue, *asked: Asked) -> None:
    queue.push(*asked)
    queue.publish(queue.take())


def test_requests_become_smaller_while_others_ask(
    queue: AgedQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(company, "LOOK_SECONDS", 0.0)
    job = Company(queue.redis, queue.prefix, queue.spec)
    answer(queue, Asked("A"))
    assert job.rows() == BATCH  # who asked before the job may never ask again

    answer(queue, Asked("!", BATCH, level=2, shape="!"))
    assert job.rows() == BATCH
    answer(queue, Asked("B"))
    assert job.rows() == PART
    answer(queue, Asked("#", PART, level=2, shape="#"))
    assert job.rows() == PART  # for a while

    monkeypatch.setattr(company, "COMPANY_SECONDS", 0.0)
    assert job.rows() == BATCH


def test_a_redis_that_is_away_changes_nothing(queue: AgedQueue) -> None:
    nowhere = Redis(port=1, socket_connect_timeout=0.1)

    assert Company(nowhere, queue.prefix, queue.spec).rows() == BATCH


@pytest.mark.parametrize(
    ("rows", "executions", "requests", "others"),
    [
        (BATCH, 3, 3, 0),  # whole batches of a job
        (PART, 3, 3, 0),  # or parts of them
        (BATCH, 3, 5, 2),  # two went along with others
        (PART - 1, 2, 2, 2),  # smaller than a job's
    ],
)
def test_who_is_no_job_is_seen_by_the_sizes_of_batches(
    rows: int, executions: int, requests: int, others: int
) -> None:
    counted = {rows: Totals(execution_count=executions, request_count=requests)}

    assert requests_of_others(counted, PART) == others
