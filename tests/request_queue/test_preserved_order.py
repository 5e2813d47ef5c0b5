"""With preserve_ordering, clients hear of their answers in the order in which they were claimed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from aged_queue import AgedQueue, Asked, names_of
from redis import Redis

from shared.model_spec import QueuePolicy
from shared.settings import Settings
from shared.wire.client import connect


@pytest.fixture
def redis(settings: Settings) -> Iterator[Redis]:
    with connect(settings.redis_url) as client:
        yield client


@pytest.fixture
def queue(settings: Settings, redis: Redis) -> Iterator[AgedQueue]:
    queue = AgedQueue(settings, redis, preserve_ordering=True, max_batch_size=2)
    queue.push(*(Asked(name) for name in "abcd"))
    yield queue
    queue.close()


def nothing_is_left(queue: AgedQueue) -> bool:
    """Tell whether no id is kept for the order's sake."""
    return not queue.redis.exists(queue.keys.order)


def test_the_second_batch_is_told_of_after_the_first(queue: AgedQueue) -> None:
    first, second = queue.take(0), queue.take(1)

    queue.publish(second, 1)
    assert queue.told() == ""
    queue.publish(first, 0)

    assert queue.told() == "abcd"
    assert nothing_is_left(queue)


def test_a_process_that_connects_anew_does_not_take_what_is_held_back(queue: AgedQueue) -> None:
    ids = [Asked(name).id for name in "abcd"]
    first = queue.take(0)
    queue.publish(queue.take(1), 1)

    assert queue.told(*ids) == ""
    queue.publish(first, 0)

    assert queue.told(*ids) == "abcd"


def test_without_the_flag_nobody_is_held_back(settings: Settings, redis: Redis) -> None:
    queue = AgedQueue(settings, redis, max_batch_size=1)
    queue.push(Asked("a"), Asked("b"))
    queue.take(0)
    queue.publish(queue.take(1), 1)

    assert queue.told() == "b"
    assert nothing_is_left(queue)
    queue.close()


def test_a_request_keeps_its_place_when_its_instance_dies(queue: AgedQueue) -> None:
    queue.take(0)
    queue.publish(queue.take(1), 1)

    queue.crash(0)
    assert queue.told() == ""
    again = queue.take(1), queue.take(1)
    queue.publish(again[1], 1)
    assert queue.told() == ""
    queue.publish(again[0], 1)

    assert [names_of(batch) for batch in again] == ["a", "b"]
    assert queue.told() == "abcd"
    assert nothing_is_left(queue)


@pytest.mark.parametrize("put_back", [False, True])
def test_a_cancelled_request_holds_nobody_up(queue: AgedQueue, put_back: bool) -> None:
    queue.take(0)
    queue.publish(queue.take(1), 1)
    if put_back:
        queue.crash(0)

    queue.cancel(Asked("a"))
    assert queue.told() == ""
    queue.cancel(Asked("b"))

    assert queue.told() == "cd"
    assert nothing_is_left(queue)


def test_a_request_that_was_put_back_and_expired_holds_nobody_up(queue: AgedQueue) -> None:
    queue.take(0)
    queue.publish(queue.take(1), 1)
    queue.crash(0)
    queue.pass_time(2000.0)

    assert queue.claim() < 0

    assert [name for name, error in queue.answers() if not error] == ["c", "d"]
    assert nothing_is_left(queue)


def test_a_request_that_was_given_up_is_told_of_in_its_place(queue: AgedQueue) -> None:
    first = queue.take(0)
    queue.publish(queue.take(1), 1)
    told = []
    for name in ("ab", "a", "a"):
        assert names_of(first) == name
        queue.crash(0)
        told.append(queue.answers())
        first = queue.take(0)
    assert names_of(first) == "b"
    queue.publish(first)

    assert told[:2] == [[], []]
    ((name, message),) = told[2]
    assert name == "a" and "died 3 times" in message
    assert queue.told() == "bcd"
    assert nothing_is_left(queue)


def test_one_that_dies_for_good_behind_others_waits_for_them(queue: AgedQueue) -> None:
    first = queue.take(0)
    for _ in range(3):
        queue.take(1)
        queue.crash(1)
    assert queue.told() == ""
    queue.publish(first, 0)

    assert queue.told() == "abc"


def test_a_body_that_expires_holds_nobody_up_once_its_batch_ends(queue: AgedQueue) -> None:
    queue.take(0)
    queue.publish(queue.take(1), 1)
    queue.redis.delete(*(queue.keys.body + Asked(name).id for name in "ab"))

    queue.crash(0)

    assert queue.told() == "cd"
    assert nothing_is_left(queue)


def test_answers_are_kept_for_as_long_as_they_are_held_back(queue: AgedQueue) -> None:
    queue.take(0)
    queue.publish(queue.take(1), 1)

    assert queue.redis.ttl(queue.keys.result + Asked("c").id) > 600


def test_work_claimed_before_redis_lost_its_memory_is_told_of(queue: AgedQueue) -> None:
    second = queue.take(0), queue.take(1)
    queue.redis.delete(queue.keys.order)

    queue.publish(second[1], 1)

    assert queue.told() == "cd"


def test_what_is_put_back_by_its_living_instance_has_one_place(queue: AgedQueue) -> None:
    queue.take(0)
    queue.ends[0].put_back()
    queue.take(0)

    assert queue.redis.llen(queue.keys.order) == 2


def test_rejected_requests_were_never_claimed_and_are_told_of_at_once(
    settings: Settings, redis: Redis
) -> None:
    policy = QueuePolicy(default_timeout_seconds=1.0)
    queue = AgedQueue(
        settings, redis, preserve_ordering=True, max_batch_size=1, queue_policies=(policy,)
    )
    queue.push(Asked("a"), Asked("b", age=2.0), Asked("c"))
    queue.take(0)
    second = queue.take(1)

    assert names_of(second) == "c"
    assert queue.told() == "b"
    queue.publish(second, 1)
    assert queue.told() == ""
    queue.close()
