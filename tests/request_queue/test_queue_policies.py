"""What a queue policy does with requests that wait too long: rejected at once, or served last."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from aged_queue import AgedQueue, Asked, names_of
from redis import Redis

from shared.errors import RequestExpired
from shared.messages import InferRequest
from shared.model_spec import QueuePolicy
from shared.request_queue.async_requests import AsyncRequests
from shared.request_queue.commands import queue_timeout
from shared.settings import Settings
from shared.wire.client import connect

SHORT, LATE = 5.0, 10.0
"""A time-out on the queue, and an age at which it is over."""
BODY_BYTES = len(InferRequest("id", 1, ()).encode())
EXPIRED = "Request timeout expired"
REJECT = QueuePolicy(default_timeout_seconds=SHORT)
DELAY = QueuePolicy(timeout_action="DELAY", default_timeout_seconds=SHORT)
FREE = QueuePolicy(allow_timeout_override=True)


@pytest.fixture
def redis(settings: Settings) -> Iterator[Redis]:
    with connect(settings.redis_url) as client:
        yield client


@pytest.fixture
def make(settings: Settings, redis: Redis) -> Iterator[Any]:
    made: list[AgedQueue] = []

    def queue(*policies: QueuePolicy, **fields: Any) -> AgedQueue:
        levels = len(policies) if len(policies) > 1 else 0
        made.append(
            AgedQueue(settings, redis, queue_policies=policies, priority_levels=levels, **fields)
        )
        return made[-1]

    yield queue
    for each in made:
        each.close()


def fails(queue: AgedQueue) -> int:
    """Return how many requests failed, as the statistics say."""
    count: int = queue.stats()["inference_stats"]["fail"]["count"]
    return count


def rejected(queue: AgedQueue) -> int:
    return int(queue.redis.hget(queue.keys.counts, "rejected") or 0)


def test_a_rejected_request_is_answered_and_counted_and_takes_no_seat(make: Any) -> None:
    queue = make(REJECT, max_batch_size=2)
    queue.push(Asked("a", age=LATE), Asked("b"), Asked("c", 2, age=LATE), Asked("d"))

    batches, _ = queue.batches()

    assert batches == ["bd"]
    assert queue.answers() == [("a", EXPIRED), ("c", EXPIRED)]
    assert (rejected(queue), fails(queue)) == (2, 2)
    assert not queue.redis.exists(queue.keys.bytes, queue.keys.body + Asked("a").id)


def test_one_is_rejected_while_the_others_wait_on(make: Any) -> None:
    queue = make(FREE, max_queue_delay_seconds=60.0)
    queue.push(Asked("a"), Asked("b", timeout=SHORT), Asked("c"))

    assert queue.claim() == pytest.approx(SHORT - 1.5, abs=1.5), "the wait is cut short"
    queue.pass_time(LATE)
    assert queue.claim() == pytest.approx(58.0 - LATE, abs=2.0)

    assert queue.answers() == [("b", EXPIRED)]
    assert queue.waiting() == ("ac", "")
    assert int(queue.redis.get(queue.keys.bytes)) == 2 * BODY_BYTES


def test_rejected_ones_behind_a_preferred_batch_are_answered_at_once(make: Any) -> None:
    queue = make(FREE, max_queue_delay_seconds=60.0, preferred_batch_sizes=(2,))
    late = [Asked(name, age=LATE, timeout=SHORT) for name in "xy"]
    queue.push(Asked("a"), late[0], Asked("b"), late[1], Asked("c"))

    batches, _ = queue.batches()

    assert batches == ["ab"]
    assert queue.told() == "xy"
    assert queue.waiting() == ("c", "")
    queue.pass_time(100.0)
    assert queue.batches()[0] == ["c"]
    assert not queue.redis.exists(queue.keys.bytes)


def test_a_delayed_request_is_served_after_everything_on_its_level(make: Any) -> None:
    queue = make(DELAY, DELAY, max_batch_size=1)
    queue.push(Asked("a", age=LATE), Asked("b"), Asked("z", level=2))

    first = queue.take()
    assert int(queue.redis.get(queue.keys.bytes)) == 2 * BODY_BYTES
    queue.push(Asked("c"), Asked("d", level=2))

    assert names_of(first) == "b"
    assert queue.waiting() == ("c", "a")
    assert queue.batches()[0] == ["c", "a", "z", "d"]
    assert queue.told() == ""
    assert not queue.redis.exists(queue.keys.bytes)


def test_a_delayed_request_is_not_delayed_again_and_keeps_its_turn(make: Any) -> None:
    queue = make(DELAY, max_batch_size=1)
    queue.push(Asked("a", age=LATE), Asked("b", age=LATE), Asked("c"))
    assert names_of(queue.take()) == "c"
    queue.push(Asked("d", age=LATE))
    queue.pass_time(LATE)

    batches, _ = queue.batches()

    assert batches == ["a", "b", "d"]


def test_a_request_whose_time_is_over_in_the_pending_batch_goes_behind_it(make: Any) -> None:
    queue = make(DELAY, max_queue_delay_seconds=60.0)
    queue.push(Asked("a"), Asked("b"))
    queue.pass_time(LATE, "a")

    assert queue.claim() == pytest.approx(SHORT - 1.5, abs=1.5)

    assert queue.waiting() == ("b", "a")
    queue.push(Asked("c"))
    queue.pass_time(100.0, "a")
    assert queue.batches()[0] == ["bca"]


def test_each_level_has_its_own_policy(make: Any) -> None:
    queue = make(REJECT, DELAY, QueuePolicy(), max_batch_size=1)
    queue.push(*(Asked(name, level=level, age=LATE) for level, name in enumerate("abc", 1)))
    queue.push(*(Asked(name, level=level) for level, name in enumerate("def", 1)))

    batches, _ = queue.batches()

    assert batches == ["d", "e", "b", "c", "f"]
    assert queue.told() == "a"


def test_what_has_been_claimed_once_is_neither_rejected_nor_delayed(make: Any) -> None:
    queue = make(REJECT, DELAY)
    queue.push(Asked("a"), Asked("b", level=2))
    assert names_of(queue.take()) == "ab"
    queue.pass_time(LATE)

    queue.crash()
    queue.pass_time(LATE)
    queue.push(Asked("c", level=2))

    assert queue.batches()[0] == ["a", "b", "c"]


def test_the_requests_own_deadline_holds_while_it_is_delayed(make: Any) -> None:
    queue = make(DELAY)
    queue.push(Asked("a", age=LATE, deadline=15.0), Asked("b"))
    assert names_of(queue.take(max_rows=1)) == "b"
    assert queue.waiting() == ("", "a")
    queue.pass_time(LATE)

    assert queue.batches()[0] == []
    assert (fails(queue), rejected(queue)) == (1, 0)
    assert queue.told() == "a"


def test_a_delayed_request_can_be_cancelled_and_is_looked_for(
    make: Any, settings: Settings
) -> None:
    queue = make(DELAY, max_batch_size=1)
    queue.push(Asked("a", age=LATE, asynchronous=True), Asked("b", age=LATE), Asked("c"))
    queue.take()
    requests = AsyncRequests(queue.redis, queue.keys, queue.limits)

    assert queue.waiting() == ("", "ab")
    assert requests.state(Asked("a", asynchronous=True).id).what == "waiting"
    assert requests.state(Asked("b").id).ahead == 1
    assert requests.cancel(Asked("a", asynchronous=True).id) == "waiting"
    assert queue.batches()[0] == ["b"]


def test_a_delayed_request_still_counts_on_its_level(make: Any) -> None:
    queue = make(DELAY.model_copy(update={"max_queue_size": 2}))
    queue.push(Asked("a", age=LATE), Asked("b"))
    queue.claim(max_rows=1)

    assert queue.push(Asked("c"), Asked("d")) == ["queued", "full 2"]


@pytest.mark.parametrize("idempotent", [False, True])
def test_a_rejected_request_that_nobody_waits_for_is_answered(make: Any, idempotent: bool) -> None:
    queue = make(REJECT)
    asked = Asked("a", age=LATE, asynchronous=not idempotent, idempotent=idempotent)
    queue.push(asked)

    assert queue.batches()[0] == []

    state = AsyncRequests(queue.redis, queue.keys, queue.limits).state(asked.id)
    assert state.what == "done" and state.result is not None
    assert isinstance(state.result.error, RequestExpired)
    lifetime = queue.redis.ttl(queue.keys.result + asked.id)
    assert (lifetime > 60) is idempotent


@pytest.mark.parametrize(
    ("policy", "wish", "seconds"),
    [
        (QueuePolicy(), 5.0, 0.0),
        (QueuePolicy(default_timeout_seconds=3.0), 0.0, 3.0),
        (QueuePolicy(default_timeout_seconds=3.0), 1.0, 3.0),
        (FREE, 0.0, 0.0),
        (FREE, 5.0, 5.0),
        (QueuePolicy(default_timeout_seconds=3.0, allow_timeout_override=True), 1.0, 1.0),
        (QueuePolicy(default_timeout_seconds=3.0, allow_timeout_override=True), 0.0, 3.0),
        (QueuePolicy(default_timeout_seconds=3.0, allow_timeout_override=True), 4.0, 3.0),
        (QueuePolicy(default_timeout_seconds=90.0), 0.0, 0.0),
    ],
)
def test_a_requests_own_timeout_counts_when_it_may_and_is_shorter(
    policy: QueuePolicy, wish: float, seconds: float
) -> None:
    request = InferRequest("id", 1, (), timeout_seconds=60.0, queue_timeout_seconds=wish)

    assert queue_timeout(policy, request) == seconds
