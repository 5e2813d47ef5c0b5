"""Replies to pushes are read many at a time; what a lost connection leaves open is pushed again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from two_ends import TwoEnds
from waiting import wait_until

from shared.courier import courier, sender
from shared.courier.pending import PendingRequest, PushArguments
from shared.courier.sender import Sender
from shared.errors import FerryError, QueueFull, RedisUnavailable
from shared.request_queue.commands import push_command
from shared.request_queue.limits import Limits
from shared.wire.wire import open_wire


class Counted:
    """A sender of its own on a real wire, whose writes and read replies are counted."""

    def __init__(self, ends: TwoEnds, limits: Limits) -> None:
        self.refused: dict[str, FerryError] = {}
        self.reads = 0
        self.writes: list[list[str]] = []
        self.wire = open_wire(ends.redis)
        self.really_reply: Callable[[], Any] = self.wire.reply
        self.wire.reply = self._reply  # type: ignore[method-assign]
        self._push_command = partial(push_command, ends.keys, limits)
        self.sender = Sender(self.wire, self._command, self._refuse)

    def push(self, count: int = 1) -> list[PendingRequest]:
        """Send so many requests, all but the last one held until that is sent."""
        requests = [new_request() for _ in range(count)]
        for held in requests[:-1]:
            self.sender.hold(held)
        self.sender.send(requests[-1])
        return requests

    def lose(self) -> None:
        """Lose the connection, with the replies that came on it."""
        opened = self.wire.plain_socket()
        assert opened is not None
        opened.close()

    def _command(self, pushes: list[PushArguments]) -> tuple[Any, ...]:
        self.writes.append([push.id for push in pushes])
        return self._push_command(pushes)

    def _reply(self) -> Any:
        self.reads += 1
        return self.really_reply()

    def _refuse(self, request: PendingRequest, error: FerryError) -> None:
        self.refused[request.id] = error
        request.fail(error)


@pytest.fixture
def counted(ends: TwoEnds) -> Iterator[Counted]:
    counted = Counted(ends, Limits(4))
    yield counted
    counted.wire.close()


_numbers = iter(range(10**6))


def new_request() -> PendingRequest:
    push = PushArguments(f"{next(_numbers):032x}", 1, 1, bytes(8), 20.0, 20_000, b"body")
    return PendingRequest(push, time.monotonic() + 20.0, lambda _: None)


def answer(requests: list[PendingRequest]) -> None:
    for request in requests:
        request.answer(b"")


def ids(*requests: PendingRequest) -> list[str]:
    return [request.id for request in requests]


def test_replies_are_not_waited_for_while_all_that_was_pushed_is_answered(
    counted: Counted,
) -> None:
    first, second = counted.push(), counted.push()
    assert counted.reads == 1  # what was open could gather meanwhile
    answer(second)
    third = counted.push(2)
    answer(third)
    fourth = counted.push()
    assert counted.reads == 1
    assert not any(request.accepted for request in (*second, *third, *fourth))

    counted.sender.confirm()

    # The fifth is one too many: nobody has taken the others off the queue.
    assert counted.reads == 4
    assert all(request.accepted for request in (*first, *second, *third))
    assert isinstance(counted.refused[fourth[0].push.id], QueueFull)


def test_of_several_writes_that_are_lost_only_what_is_open_is_pushed_again(
    counted: Counted,
) -> None:
    first = counted.push(2)
    answer(first)
    done, still_open = counted.push(2)
    answer([done])
    assert counted.reads == 0
    counted.lose()

    counted.sender.confirm()

    assert counted.writes == [ids(*first), ids(done, still_open), ids(still_open)]
    assert still_open.accepted and not counted.refused


def test_a_write_that_finds_the_connection_closed_goes_out_on_another(counted: Counted) -> None:
    done = counted.push()
    answer(done)
    counted.lose()

    (behind,) = counted.push()
    counted.sender.confirm()

    assert counted.writes == [ids(*done), ids(behind)]
    assert behind.accepted and not counted.refused


def test_what_is_open_goes_before_a_write_that_finds_the_connection_closed(
    counted: Counted,
) -> None:
    (first,) = counted.push()
    counted.lose()

    (second,) = counted.push()
    counted.sender.confirm()

    assert counted.writes == [ids(first), ids(first), ids(second)]
    assert first.accepted and second.accepted


def test_what_was_accepted_and_is_refused_when_pushed_again_is_retried(counted: Counted) -> None:
    replies: list[Any] = [ResponseError("OOM command not allowed")] * 2
    counted.really_reply = lambda: raised(replies.pop(0)) if replies else [b"queued"]
    (accepted,) = requests = [new_request()]
    accepted.accepted = True
    counted.sender.send_again(requests)

    for _ in range(2):
        counted.sender.release()
        counted.sender.confirm()
        assert accepted.is_open and not counted.sender.outbox
        counted.sender.retry()
    counted.sender.release()
    counted.sender.confirm()
    counted.sender.retry()

    assert counted.writes == [ids(accepted)] * 3
    assert not counted.refused and not counted.sender.outbox


def test_what_was_accepted_and_finds_the_queue_full_again_is_retried(counted: Counted) -> None:
    counted.really_reply = lambda: [b"full 4"]
    (accepted,) = requests = [new_request()]
    accepted.accepted = True
    counted.sender.send_again(requests)

    counted.sender.release()
    counted.sender.confirm()
    counted.sender.retry()

    assert accepted.is_open and ids(*counted.sender.outbox) == ids(accepted)


def test_what_may_be_stored_is_retried_while_redis_cannot_be_reached(
    counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    (sent,) = counted.push()
    counted.lose()
    with monkeypatch.context() as away:
        away.setattr(counted.wire, "send_behind", lambda *_: raised(RedisConnectionError("away")))
        counted.sender.confirm()
    assert sent.is_open and not sent.accepted

    counted.sender.retry()
    counted.sender.release()
    counted.sender.confirm()

    assert sent.accepted


def test_so_many_replies_are_read_at_the_latest(
    counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "MAX_UNREAD_REPLIES", 3)

    for reads in (0, 0, 0, 3, 3):
        answer(counted.push())
        assert counted.reads == reads


def test_what_redis_refuses_is_refused_and_stops_none_behind_it(counted: Counted) -> None:
    replies: list[Any] = [ResponseError("OOM command not allowed"), [b"queued"]]
    counted.really_reply = lambda: raised(replies.pop(0))
    (refused,) = counted.push()
    answer([refused])
    (behind,) = counted.push()

    counted.sender.confirm()

    assert isinstance(counted.refused[refused.push.id], RedisUnavailable)
    assert behind.accepted and not counted.sender.to_retry


def test_the_courier_retries_pushes_of_unknown_outcome(
    ends: TwoEnds, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(courier, "PUSH_AGAIN_SECONDS", 0.02)
    (waiting,) = ends.push(1)
    ends.redis.delete(*ends.redis.keys(f"{ends.keys.tag}*"))

    ends.sender.to_retry.append(waiting)

    wait_until(lambda: ends.redis.llen(ends.keys.queues[0]) == 1, 10, "it is pushed again")


def raised(reply: Any) -> Any:
    if isinstance(reply, RedisConnectionError | ResponseError):
        raise reply
    return reply
