"""Requests leave together, within what Redis takes in one command."""

from __future__ import annotations

from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from shared.courier import sender
from shared.courier.pending import PendingRequest, PushArguments
from shared.courier.sender import Sender
from shared.messages import Buffers


class Wire:
    """Notes what is sent, and says that all of it was queued, but for the first `losses` times."""

    def __init__(self, losses: int = 0) -> None:
        self.writes: list[int] = []
        self._losses = losses

    def send(self, *commands: Any) -> None:
        self.writes.append(len(commands[0]))

    send_behind = send

    def reply(self) -> Any:
        self._losses -= 1
        if self._losses >= 0:
            raise RedisConnectionError("gone")
        return [b"queued"] * self.writes[-1]


def request(number: int, body: bytes | Buffers) -> PendingRequest:
    push = PushArguments(f"{number:032x}", 1, 1, bytes(8), 1.0, 1000, body)
    return PendingRequest(push, 1e9, lambda _: None)


@pytest.mark.parametrize("body", [bytes(10), Buffers([bytes(4), memoryview(bytes(6))])])
def test_a_write_ends_where_it_is_large_enough(
    body: bytes | Buffers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "MAX_BYTES_PER_WRITE", 25)
    wire: Any = Wire()
    ours = Sender(wire, tuple, lambda *_: None)
    requests = [request(number, body) for number in range(7)]
    ours.send_again(requests)

    while ours.outbox:
        ours.release()
    ours.confirm()

    assert wire.writes == [3, 3, 1]
    assert all(item.accepted for item in requests)


@pytest.mark.parametrize("answered_count", [0, 1, 2])
def test_what_is_answered_already_is_not_pushed_again(answered_count: int) -> None:
    wire: Any = Wire(losses=1)
    ours = Sender(wire, tuple, lambda *_: None)
    requests = [request(number, b"body") for number in range(2)]
    ours.send_again(requests)
    ours.release()

    for item in requests[:answered_count]:
        item.answer(b"result")
    ours.confirm()

    assert wire.writes == [2, 2 - answered_count][: 2 if answered_count < 2 else 1]


def test_what_is_answered_before_its_turn_is_not_pushed() -> None:
    wire: Any = Wire()
    ours = Sender(wire, tuple, lambda *_: None)
    ours.send_again([answered := request(1, b"body"), request(2, b"body")])
    answered.answer(b"result")

    ours.release()

    assert wire.writes == [1]
