"""Tickets of another version, as a rolling upgrade may bring: they wait for who knows them."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest
from aged_queue import AgedQueue, Asked, names_of
from redis import Redis

from shared.operations.queue_inspection import inspect_queues
from shared.request_queue.async_requests import AsyncRequests
from shared.settings import Settings
from shared.ticket import TICKET, TICKET_VERSION, filled_in
from shared.wire.client import connect


@pytest.fixture
def redis(settings: Settings) -> Iterator[Redis]:
    with connect(settings.redis_url) as client:
        yield client


@pytest.fixture
def queue(settings: Settings, redis: Redis) -> Iterator[AgedQueue]:
    queue = AgedQueue(settings, redis)
    yield queue
    queue.close()


def of_another_version(ticket: bytes) -> bytes:
    """Return a ticket as a later version may have it: longer, and nothing of ours in its middle."""
    return bytes([TICKET_VERSION + 1]) + ticket[1:3] + b"\xff" * 60 + ticket[-36:]


def push_strange(queue: AgedQueue, name: str) -> str:
    """Push a request whose ticket is of another version; returns its id."""
    key, asked = queue.keys.queues[0], Asked(name)
    queue.push(asked)
    queue.redis.lset(key, -1, of_another_version(queue.redis.lindex(key, -1)))
    return asked.id


def bytes_waiting(queue: AgedQueue) -> int:
    return int(queue.redis.get(queue.keys.bytes) or 0)


def standing(queue: AgedQueue) -> str:
    """Return the names on the queue, in their order."""
    return "".join(
        chr(int(raw[-24:], 16)) for raw in queue.redis.lrange(queue.keys.queues[0], 0, -1)
    )


def test_the_scripts_know_where_everything_stands_in_a_ticket(queue: AgedQueue) -> None:
    queue.push(Asked("a", rows=3, level=1))
    ticket = queue.redis.lindex(queue.keys.queues[0], 0)
    known = ["LEVEL", "ON_TIMEOUT", "ENQUEUED", "DEADLINE", "SIZE", "ID"]
    places = [int(filled_in(f"@{name}@")) for name in known]

    assert struct.calcsize(filled_in("@TICKET@").replace("I4", "I").replace("c8", "8s")) == 52
    version, _, level, on_timeout, _, enqueued, deadline, *_, size = TICKET.unpack_from(ticket)
    assert version == TICKET_VERSION
    read = [ticket[place - 1 :] if place > 0 else ticket[place:] for place in places]
    assert [read[0][0], read[1][0]] == [level, on_timeout]
    assert struct.unpack("<dd", read[2][:8] + read[3][:8]) == (enqueued, deadline)
    assert struct.unpack("<I", read[4][:4]) == (size,)
    assert read[5].decode() == Asked("a").id


def test_it_is_left_at_the_head_and_stops_none_behind_it(queue: AgedQueue) -> None:
    push_strange(queue, "x")
    queue.push(Asked("a"))
    push_strange(queue, "y")
    queue.push(Asked("b"))
    body_bytes = bytes_waiting(queue) // 4

    batch = queue.take()

    assert names_of(batch) == "ab"
    assert standing(queue) == "xy"
    assert bytes_waiting(queue) == 2 * body_bytes


def test_what_is_behind_a_full_batch_keeps_its_place(queue: AgedQueue) -> None:
    push_strange(queue, "x")
    queue.push(Asked("a"), Asked("b"))
    push_strange(queue, "y")

    assert names_of(queue.take(max_rows=1)) == "a"

    assert standing(queue) == "xby"


def test_alone_it_is_nothing_to_claim_and_rings_no_bell(queue: AgedQueue) -> None:
    push_strange(queue, "x")
    queue.redis.delete(queue.keys.bell)

    for _ in range(3):
        assert queue.claim() == pytest.approx(-1e-6)
        assert not queue.redis.exists(queue.keys.bell), "an instance would look again and again"

    assert standing(queue) == "x"


def test_within_the_delay_it_waits_like_the_others(settings: Settings, redis: Redis) -> None:
    queue = AgedQueue(settings, redis, max_queue_delay_seconds=60.0)
    push_strange(queue, "x")
    queue.push(Asked("a"))

    assert isinstance(queue.claim(), float)
    assert standing(queue) == "xa"
    queue.pass_time(61.0, "a")

    assert names_of(queue.take()) == "a"
    assert standing(queue) == "x"
    queue.close()


def test_once_it_is_closed_it_is_dropped(queue: AgedQueue) -> None:
    request_id = push_strange(queue, "x")
    queue.push(Asked("a"))
    queue.redis.delete(queue.keys.body + request_id)  # as its end, or its time, does

    assert names_of(queue.take()) == "a"

    assert standing(queue) == ""
    assert bytes_waiting(queue) == 0


def test_it_is_cancelled_by_its_id(queue: AgedQueue) -> None:
    push_strange(queue, "x")

    queue.cancel(Asked("x"))

    assert standing(queue) == ""
    assert bytes_waiting(queue) == 0
    assert queue.redis.hget(queue.keys.counts, "cancelled") == b"1"


def test_it_is_put_back_as_it_is_with_one_attempt_more(queue: AgedQueue) -> None:
    push_strange(queue, "x")
    inflight = queue.keys.inflight + "i0"
    for attempts in range(1, 5):
        ticket = queue.redis.lindex(queue.keys.queues[0], 0)
        queue.redis.delete(queue.keys.bytes)
        queue.redis.rename(queue.keys.queues[0], inflight)  # an instance of its version has it

        assert queue.crash() == (1, 0)

        again = queue.redis.lindex(queue.keys.queues[0], 0)
        assert again == ticket[:1] + bytes([attempts]) + ticket[2:]
        assert bytes_waiting(queue) == int.from_bytes(ticket[-36:-32], "little")


def test_operators_and_clients_see_that_it_waits(queue: AgedQueue) -> None:
    request_id = push_strange(queue, "x")
    size = bytes_waiting(queue)

    (state,) = inspect_queues(queue.redis, queue.prefix)
    (level,) = state.levels
    found = AsyncRequests(queue.redis, queue.keys, queue.limits).state(request_id)

    assert (level.depth, level.bytes, level.oldest_seconds) == (1, size, 0.0)
    assert (found.what, found.ahead) == ("waiting", 0)
