"""Whom a process asks for the node that has its keys, as nodes come and go."""

from __future__ import annotations

from typing import Any

import pytest
from redis.exceptions import AuthenticationError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError

from shared.wire.cluster import NoCluster, SlotMaster

SEED = ("seed", 7000)
WHOLE = range(16384)


class Nodes:
    """A cluster of one master with all slots, at an address that changes; others do not answer."""

    def __init__(self) -> None:
        self.master = ("a", 1)
        self.asked: list[tuple[str, int]] = []
        self.strange: dict[tuple[str, int], Exception] = {}

    def __call__(self, host: str, port: int) -> Any:
        return _Connection(self, (host, port))


class _Connection:
    def __init__(self, nodes: Nodes, address: tuple[str, int]) -> None:
        self._nodes, self._address = nodes, address

    def connect(self) -> None:
        self._nodes.asked.append(self._address)
        if error := self._nodes.strange.get(self._address):
            raise error
        if self._address not in {SEED, self._nodes.master}:
            raise RedisConnectionError(f"{self._address} does not answer")

    def send_command(self, *_: str) -> None:
        """Ask."""

    def read_response(self) -> Any:
        host, port = self._nodes.master
        return [[WHOLE[0], WHOLE[-1], [host.encode(), port, b"id"]]]

    def disconnect(self) -> None:
        """Leave."""


def test_nodes_that_left_are_not_asked_any_more() -> None:
    nodes = Nodes()
    master = SlotMaster((SEED,), "{ferry}", nodes)
    for number in range(20):
        nodes.master = (f"pod-{number}", 1)
        assert master.address() == nodes.master
        nodes.asked.clear()
        assert master.address() == nodes.master
        assert len(nodes.asked) <= 2

    assert set(master._nodes) == {SEED, nodes.master}


@pytest.mark.parametrize("error", [ResponseError("ERR no cluster"), AuthenticationError("WRONG")])
def test_somebody_else_at_an_old_address_hinders_nobody(error: Exception) -> None:
    nodes = Nodes()
    master = SlotMaster((SEED,), "{ferry}", nodes)
    master.address()
    nodes.strange[nodes.master] = error
    nodes.master = ("b", 2)

    for _ in range(4):
        assert master.address() == ("b", 2)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ResponseError("ERR This instance has cluster support disabled"), NoCluster),
        (AuthenticationError("WRONGPASS"), AuthenticationError),
    ],
)
def test_what_all_say_is_told(error: Exception, kind: type[Exception]) -> None:
    nodes = Nodes()
    nodes.strange[SEED] = error

    with pytest.raises(kind):
        SlotMaster((SEED,), "{ferry}", nodes).address()
