"""What a cache holds: so many bytes, for so many seconds; the longest unused goes first."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from cached_queue import CachedQueue
from fake_backend import fake_spec
from redis import Redis
from waiting import wait_until

from shared.settings import Settings
from shared.wire.client import connect

ENTRY_BYTES = 300


@pytest.fixture
def redis(settings: Settings) -> Iterator[Redis]:
    client = connect(settings.redis_url)
    yield client
    client.close()


def fill(queue: CachedQueue, questions: str, size: int = 1000) -> None:
    """Have each question asked and computed once."""
    for question in questions:
        queue.ask(question)
        queue.publish(queue.claim(), answer=bytes(size))


def is_kept(queue: CachedQueue, question: str) -> bool:
    """Ask, and tell whether it was answered at once; otherwise take it back."""
    (status,) = queue.push([push := queue.new_push(question)])
    queue.cancel(push.id)
    return status == "hit"


def test_the_longest_unused_answers_make_room(redis: Redis, settings: Settings) -> None:
    queue = CachedQueue(redis, settings.key_prefix, bytes=4500)
    fill(queue, "abc")
    assert is_kept(queue, "a")

    fill(queue, "d")

    assert [letter for letter in "abcd" if is_kept(queue, letter)] == ["a", "c", "d"]


def test_an_answer_above_the_limit_is_given_and_not_kept(redis: Redis, settings: Settings) -> None:
    queue = CachedQueue(redis, settings.key_prefix, bytes=4500)
    fill(queue, "a")
    large = queue.ask("b")

    queue.publish(queue.claim(), answer=bytes(4200))

    assert queue.letter(large) == "b"
    assert not is_kept(queue, "b")
    assert is_kept(queue, "a")


def test_an_answer_is_kept_for_its_time_only(redis: Redis, settings: Settings) -> None:
    queue = CachedQueue(redis, settings.key_prefix, seconds=2.0)
    fill(queue, "a")
    assert is_kept(queue, "a")

    wait_until(lambda: not is_kept(queue, "a"), 10, "its time is over")

    fill(queue, "a")
    assert is_kept(queue, "a")


def test_a_hit_does_not_prolong_an_answers_time(redis: Redis, settings: Settings) -> None:
    queue = CachedQueue(redis, settings.key_prefix, seconds=60.0)
    fill(queue, "a")
    digest = queue.new_push("a").digest
    redis.zadd(queue.keys.answers[1], {digest: 1.0})

    assert not is_kept(queue, "a")


def test_what_is_over_takes_no_room(redis: Redis, settings: Settings) -> None:
    queue = CachedQueue(redis, settings.key_prefix, bytes=4500)
    fill(queue, "abc")
    redis.zadd(queue.keys.answers[1], {queue.new_push("c").digest: 1.0})

    fill(queue, "d")

    assert [letter for letter in "abcd" if is_kept(queue, letter)] == ["a", "b", "d"]


def test_the_bytes_are_those_of_what_is_kept(redis: Redis, settings: Settings) -> None:
    queue = CachedQueue(redis, settings.key_prefix, bytes=4500)
    fill(queue, "abcdaabc", size=700)
    redis.delete(queue.keys.answers[0])  # as a Redis short of memory may do

    fill(queue, "abcdef", size=700)

    held = redis.hgetall(queue.keys.answers[0])
    total = int(held.pop(b"bytes"))
    assert total == sum(map(len, held.values())) + ENTRY_BYTES * len(held) <= 4500
    assert len(held) == redis.zcard(queue.keys.answers[2]) == redis.zcard(queue.keys.answers[1])


def test_a_cache_that_lost_its_order_is_emptied_instead_of_growing(
    redis: Redis, settings: Settings
) -> None:
    queue = CachedQueue(redis, settings.key_prefix, bytes=4500)
    fill(queue, "abc")
    redis.delete(*queue.keys.answers[1:])

    fill(queue, "d")

    digest = queue.new_push("d").digest
    assert set(redis.hkeys(queue.keys.answers[0])) == {b"bytes", digest.encode()}


def test_all_of_it_expires_with_the_last_answer(redis: Redis, settings: Settings) -> None:
    queue = CachedQueue(redis, settings.key_prefix, seconds=60.0)
    fill(queue, "a")
    is_kept(queue, "a")

    assert all(0 < redis.pttl(key) <= 60_000 for key in queue.keys.answers)


def test_an_entry_takes_about_what_is_counted_for_it(redis: Redis, settings: Settings) -> None:
    queue = CachedQueue(redis, settings.key_prefix)
    for number in range(500):
        queue.ask(f"a{number}")
        queue.publish(queue.claim())

    taken = sum(int(redis.memory_usage(key, samples=0)) for key in queue.keys.answers)
    counted = int(redis.hget(queue.keys.answers[0], "bytes"))
    assert 0.6 * taken < counted < 1.4 * taken, (taken / 500, counted / 500)


def test_another_content_of_a_version_has_a_cache_of_its_own(
    redis: Redis, settings: Settings
) -> None:
    specs = [fake_spec().model_copy(update={"revision": number}) for number in (0, 1)]
    old, new = (CachedQueue(redis, settings.key_prefix, model_key=spec.key) for spec in specs)
    fill(old, "a")

    assert is_kept(old, "a")
    assert not is_kept(new, "a")


def test_an_instance_begins_with_an_empty_cache(redis: Redis, settings: Settings) -> None:
    queue = CachedQueue(redis, settings.key_prefix)
    fill(queue, "a")
    assert is_kept(queue, "a")

    queue.work("another").claim(1, 0.0)

    assert not is_kept(queue, "a")
