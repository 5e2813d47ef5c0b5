"""Small answers are said on a channel and not stored; the rest is stored, announced, collected."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as some
from two_ends import TwoEnds, free, opened_late, result

from shared.courier import subscription
from shared.courier.subscription import answers_in
from shared.request_queue.api_end import RequestQueue
from shared.request_queue.commands import push_command
from shared.request_queue.limits import Limits
from shared.wire.wire import Wire

MAX_SAID_BYTES = 8192
EMPTY = b""


@pytest.fixture
def third(ends: TwoEnds) -> Iterator[Wire]:
    """Who overhears the courier's channel, which is listened to before anybody asks."""
    wire = ends.third()
    yield wire
    wire.close()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have nobody look for stored answers without being told."""
    monkeypatch.setattr(subscription, "QUIET_SECONDS", 60.0)


def heard(wire: Wire) -> bytes:
    kind, _, said = wire.reply()
    assert kind == b"message"
    return bytes(said)


def that_was_all(wire: Wire) -> bool:
    """Tell whether nothing but what was heard has been said."""
    wire.send_behind(("PING",))
    return bool(wire.reply()[0] == b"pong")


def test_a_small_answer_is_said_and_leaves_no_key(ends: TwoEnds, third: Wire) -> None:
    (waiting,) = ends.push(1)
    ends.settled(2)

    ends.answer(bytes(MAX_SAID_BYTES))

    assert result(waiting) == bytes(MAX_SAID_BYTES)
    assert list(answers_in(heard(third))) == [(waiting.id, bytes(MAX_SAID_BYTES))]
    assert that_was_all(third)
    assert ends.kept() <= {"bell", "stats"}


def test_a_large_answer_is_stored_and_collected_and_leaves_no_key(
    ends: TwoEnds, third: Wire, patient: None
) -> None:
    (waiting,) = ends.push(1)
    ends.settled(2)

    ends.answer(large := bytes(MAX_SAID_BYTES + 1))

    assert result(waiting) == large
    assert heard(third) == EMPTY
    assert ends.kept() <= {"bell", "stats"}


def test_the_answers_of_a_batch_are_one_message(ends: TwoEnds, third: Wire) -> None:
    waiting = ends.push(5)
    ends.settled(2)
    results = [b"", b"one", b"", bytes(2000), b"four"]

    ends.answer(*results)

    assert [result(each) for each in waiting] == results
    ids = [each.id for each in waiting]
    assert list(answers_in(heard(third))) == list(zip(ids, results, strict=True))
    assert that_was_all(third)


def test_of_a_batch_the_large_are_stored_and_the_small_said(ends: TwoEnds, third: Wire) -> None:
    waiting = ends.push(3)
    ends.settled(2)
    results = [b"first", bytes(MAX_SAID_BYTES + 1), b"last"]

    ends.answer(*results)

    assert [result(each) for each in waiting] == results
    said = {heard(third), heard(third)}
    assert EMPTY in said
    (small,) = said - {EMPTY}
    assert [one for _, one in answers_in(small)] == [b"first", b"last"]


def test_what_is_too_much_for_one_message_is_stored(ends: TwoEnds, third: Wire) -> None:
    waiting = ends.push(40)
    ends.settled(2)
    results = [bytes([number]) * 8000 for number in range(40)]

    ends.answer(*results)

    assert [result(each) for each in waiting] == results
    said = {heard(third), heard(third)}
    assert EMPTY in said
    (message,) = said - {EMPTY}
    assert [one for _, one in answers_in(message)] == results[:32]


def test_each_process_hears_its_own_answers(ends: TwoEnds, third: Wire) -> None:
    other = RequestQueue(ends.redis, ends.keys, Limits())
    ours, theirs, again = *ends.push(1), *ends.push(1, other), *ends.push(1)
    ends.settled(2)

    ends.answer(b"ours", b"theirs", b"again")

    assert [result(each) for each in (ours, theirs, again)] == [b"ours", b"theirs", b"again"]
    assert [said for _, said in answers_in(heard(third))] == [b"ours", b"again"]


def test_an_answer_that_is_there_before_anybody_listens_arrives(
    ends: TwoEnds, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = opened_late(monkeypatch)
    (waiting,) = ends.push(1)

    ends.answer(b"early")

    assert f"result:{waiting.id}" in ends.kept()
    assert waiting.is_open
    gate.set()
    assert result(waiting) == b"early"
    assert ends.listeners() == 1


def test_any_number_of_stored_answers_is_collected(ends: TwoEnds, patient: None) -> None:
    """One announcement is enough, and a collection takes 1000."""
    waiting = ends.push(2500)
    ends.settled()
    ids = [each.id for each in waiting]

    with ends.redis.pipeline() as pipeline:
        for request_id in ids:
            pipeline.set(ends.keys.result + request_id, request_id, px=60_000)
            pipeline.rpush(ends.channel, request_id)
        pipeline.publish(ends.channel, EMPTY)
        pipeline.execute()

    assert [result(each) for each in waiting] == [request_id.encode() for request_id in ids]
    assert not [key for key in ends.kept() if key.startswith(("result:", "answered:"))]


def test_an_asynchronous_answer_is_stored_and_nobody_is_told(ends: TwoEnds, third: Wire) -> None:
    waiting = ends.push(1)[0]
    push = waiting.push._replace(id="0" * 32)
    ends.wire.send(push_command(ends.keys, Limits(), [push]))
    assert ends.wire.reply() == [b"queued"]
    ends.settled(2)

    claimed = ends.claim(2)
    ends.work.publish(claimed, free([b"said", b"kept"], claimed))

    assert result(waiting) == b"said"
    assert ends.redis.get(ends.keys.result + "0" * 32) == b"kept"
    assert [said for _, said in answers_in(heard(third))] == [b"said"]
    assert that_was_all(third)
    assert not [key for key in ends.kept() if key.startswith("answered:")]


@given(
    some.lists(
        some.tuples(some.text("0123456789abcdef", min_size=32, max_size=32), some.binary()),
        max_size=5,
    )
)
def test_a_message_is_read_as_it_was_packed(answers: list[tuple[str, bytes]]) -> None:
    packed = [
        request_id.encode() + struct.pack("<I", len(said)) + said for request_id, said in answers
    ]

    assert list(answers_in(b"".join(packed))) == answers
