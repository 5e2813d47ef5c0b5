"""Finds the node of a Redis Cluster that has Ferry's keys.

They are all in one slot, since they begin with FERRY_KEY_PREFIX in braces: each script, transaction
and WAITAOF has one server, as everywhere else. Why, stands in docs/decisions/operating.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from redis.crc import key_slot
from redis.exceptions import AuthenticationError, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError

Address = tuple[str, int]
MOVED = frozenset({"ASK", "CLUSTERDOWN", "MOVED"})
"""Codes of error replies of a node that has not, or not any more, what it was asked for."""


class NoCluster(RedisError):
    """What a cluster's URL names does not say which of its nodes has which slots."""


class SlotMaster:
    """The master of one slot; who that is is asked anew for each connection."""

    def __init__(
        self, hosts: tuple[Address, ...], key_prefix: str, open_node: Callable[..., Any]
    ) -> None:
        """Ask `hosts` and the nodes that they name, by connections of `open_node`; not yet."""
        self._hosts = list(hosts)
        self._nodes = list(hosts)
        self._slot = key_slot(key_prefix.encode())
        self._open_node = open_node
        self._turn = -1

    def address(self) -> Address:
        """Return where it listens, as the first node says that answers; raises redis.RedisError.

        Each time another node is asked first: one that lost the others names who was master then.
        """
        self._turn += 1
        first = self._turn % len(self._nodes)
        failures: list[RedisError] = []
        for node in self._nodes[first:] + self._nodes[:first]:
            try:
                return self._said_by(node)
            except RedisError as error:
                failures.append(error)
        for failure in failures:  # of a node that left, somebody else may have the address by now
            if isinstance(failure, AuthenticationError | NoCluster):
                raise failure
        raise RedisConnectionError(
            f"no node names the master of our keys: {failures[-1]}"
        ) from failures[-1]

    def _said_by(self, node: Address) -> Address:
        named, ours = list(self._hosts), None
        for first, last, *nodes in self._slots_of(node):
            found = [_address(each, node) for each in nodes]
            named += found
            if first <= self._slot <= last:
                ours = found[0]
        if ours is not None:
            self._nodes = list(dict.fromkeys(named))  # without those that left the cluster
            return ours
        raise RedisConnectionError(f"CLUSTERDOWN nobody has slot {self._slot}")

    def _slots_of(self, node: Address) -> Any:
        connection = self._open_node(host=node[0], port=node[1])
        try:
            connection.connect()
            connection.send_command("CLUSTER", "SLOTS")
            return connection.read_response()
        except ResponseError as error:
            raise NoCluster(f"{node[0]}:{node[1]} is no node of a cluster: {error}") from error
        finally:
            connection.disconnect()


def _address(said: Any, node: Address) -> Address:
    """Return where a node listens; one that does not know its own host was reached as we did."""
    host, port = said[0], said[1]
    return (host.decode() if host and host != b"?" else node[0]), int(port)
