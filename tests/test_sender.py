"""Requests leave together, within what Redis takes in one command."""

from __future__ import annotations

from typing import Any

import pytest

from shared import sender
from shared.parcels import Parcel, Push
from shared.pieces import Pieces
from shared.sender import Sender


class Wire:
    """Notes what is sent, and says that all of it was queued."""

    def __init__(self) -> None:
        self.writes: list[int] = []

    def send(self, *commands: Any) -> None:
        self.writes.append(len(commands[0]))

    def reply(self) -> Any:
        return [b"queued"] * self.writes[-1]


def parcel(number: int, body: bytes | Pieces) -> Parcel:
    return Parcel(Push(f"{number:032x}", 1, 1, bytes(8), 1.0, 1000, body), deadline=1e9)


@pytest.mark.parametrize("body", [bytes(10), Pieces([bytes(4), memoryview(bytes(6))])])
def test_a_write_ends_where_it_is_large_enough(
    body: bytes | Pieces, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "MAX_BYTES_PER_WRITE", 25)
    wire: Any = Wire()
    ours = Sender(wire, tuple, lambda *_: None)
    parcels = [parcel(number, body) for number in range(7)]
    ours._outbox.extend(parcels)

    while ours._outbox:
        ours._send_some()
    ours.confirm()

    assert wire.writes == [3, 3, 1]
    assert all(item.accepted for item in parcels)
