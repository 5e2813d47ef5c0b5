"""Who expired by Redis's clock is told by the claim that finds it: an API's own may be behind."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from aged_queue import AgedQueue, Asked, names_of
from redis import Redis
from two_ends import TwoEnds

from shared.errors import RequestExpired
from shared.request_queue.async_requests import AsyncRequests
from shared.settings import Settings
from shared.ticket import TICKET
from shared.wire.client import connect

LATE = "Request timeout expired"


@pytest.fixture
def redis(settings: Settings) -> Iterator[Redis]:
    with connect(settings.redis_url) as client:
        yield client


@pytest.fixture(params=["plain", "ordered"])
def queue(settings: Settings, redis: Redis, request: pytest.FixtureRequest) -> Iterator[AgedQueue]:
    queue = AgedQueue(settings, redis, preserve_ordering=request.param == "ordered")
    yield queue
    queue.close()


def test_who_expired_is_told_and_who_did_not_is_run(queue: AgedQueue) -> None:
    queue.push(Asked("a", age=6, deadline=5), Asked("b"), Asked("c", age=6, deadline=5))

    assert names_of(queue.take()) == "b"

    assert sorted(queue.answers()) == [("a", LATE), ("c", LATE)]
    assert queue.redis.hget(queue.keys.counts, "expired") == b"2"


def test_alone_on_the_queue_it_is_told_as_well(queue: AgedQueue) -> None:
    queue.push(Asked("a", age=6, deadline=5))

    assert queue.claim() == pytest.approx(-1e-6)

    assert queue.answers() == [("a", LATE)]
    assert not queue.redis.exists(queue.keys.queues[0], queue.keys.bytes)


def test_one_that_expired_so_long_ago_that_its_body_did_too_is_told(queue: AgedQueue) -> None:
    queue.push(Asked("a", age=6, deadline=5))
    queue.redis.delete(queue.keys.body + Asked("a").id)

    queue.claim()

    assert queue.answers() == [("a", LATE)]


def test_it_takes_no_answer_away(queue: AgedQueue) -> None:
    queue.push(Asked("a"))
    queue.publish(queue.take())  # nobody listens: it is stored
    queue.push(Asked("b", age=6, deadline=5))
    ticket = queue.redis.lindex(queue.keys.queues[0], 0)
    queue.redis.lset(queue.keys.queues[0], 0, ticket[: TICKET.size] + Asked("a").id.encode())

    queue.claim()

    assert ("a", "") in queue.answers()


@pytest.mark.parametrize("kind", ["asynchronous", "idempotent"])
def test_for_one_that_nobody_waits_for_nothing_is_stored(queue: AgedQueue, kind: str) -> None:
    asked = Asked("a", age=6, deadline=5)._replace(**{kind: True})
    queue.push(asked)

    queue.claim()

    assert AsyncRequests(queue.redis, queue.keys, queue.limits).state(asked.id).what == "gone"
    assert list(queue.redis.scan_iter(f"{queue.keys.tag}[ra]*")) == []


def test_its_client_is_told_at_once(ends: TwoEnds) -> None:
    (waiting,) = ends.push(1)
    ends.listening()
    key = ends.keys.queues[0]
    ticket = ends.redis.lindex(key, 0)
    *head, deadline, queue_deadline, signature, turn, size = TICKET.unpack_from(ticket)
    late = TICKET.pack(*head, deadline - 60, queue_deadline, signature, turn, size)
    ends.redis.lset(key, 0, late + ticket[TICKET.size :])

    ends.work.claim_now(8, 0.0)

    assert waiting.done.wait(10)  # of twenty seconds
    with pytest.raises(RequestExpired, match=LATE):
        waiting.wait()
