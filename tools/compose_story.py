"""Runs docker-compose.yml under load and looks at its promises: `make test-compose`.

Up with three workers and two APIs, a worker's init killed, an API restarted behind the proxy, then
the stop in Compose's order: no answer may be missing or wrong, and behind the proxy none refused.
COMPOSE names the command (`docker compose`), ENGINE what kills a container (`docker`).
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from threading import Event, Thread

ROOT = Path(__file__).resolve().parents[1]
COMPOSE = shlex.split(os.environ.get("COMPOSE", "docker compose"))
ENGINE = os.environ.get("ENGINE", "docker")
CLIENTS = 8
READY_SECONDS = 300.0
LOAD_SECONDS = 8.0
OK = 200
TOLERANCE = 1e-4


class Load:
    """Clients that ask through the proxy, and what came instead of the answers they know."""

    def __init__(self, port: int) -> None:
        """Ask nothing yet."""
        self._port = port
        self._stopped = Event()
        self.right = 0
        self.wrong: list[str] = []

    def ask(self, connection: HTTPConnection, number: int) -> tuple[int, list[float]]:
        """Return an answer's status and numbers; raises OSError and HTTPException without one."""
        row = [float(number + place) for place in range(16)]
        tensor = {"name": "INPUT__0", "datatype": "FP32", "shape": [1, 16], "data": row}
        connection.request("POST", "/v2/models/tiny/infer", json.dumps({"inputs": [tensor]}))
        answer = connection.getresponse()
        said = answer.read()  # a proxy's own errors are no JSON
        data = json.loads(said)["outputs"][0]["data"] if answer.status == OK else []
        return answer.status, data

    def run(self, number: int) -> None:
        """Ask the same again and again, until told to stop."""
        expected: list[float] | None = None
        connection = HTTPConnection("127.0.0.1", self._port, timeout=60)
        while not self._stopped.is_set():
            try:
                status, data = self.ask(connection, number)
            except (OSError, HTTPException) as error:
                connection.close()
                self.wrong.append(repr(error))
                continue
            expected = expected or data
            if status == OK and is_same(data, expected):
                self.right += 1
            else:
                self.wrong.append(f"{status} {data}")
        connection.close()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Ask for as long as the block."""
        threads = [Thread(target=self.run, args=(number,)) for number in range(CLIENTS)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stopped.set()
            for thread in threads:
                thread.join()


def is_same(data: list[float], expected: list[float]) -> bool:
    """Tell whether both are the same answer, in batches of whatever size."""
    if len(data) != len(expected):
        return False
    return all(abs(a - b) < TOLERANCE for a, b in zip(data, expected, strict=True))


def main() -> int:
    """Tell the story; 0 when all held, 1 when something did not, 2 without an engine."""
    if not (runs([*COMPOSE, "version"]) and runs([ENGINE, "info"])):
        named = f"`{shlex.join(COMPOSE)}` and an engine that `{ENGINE}` reaches"
        print(f"test-compose: needs {named}; COMPOSE and ENGINE name others")
        return 2
    port = int(os.environ.get("FERRY_PORT", "8000"))
    try:
        compose("up", "--detach", "--build", "--scale", "worker=3", "--scale", "api=2")
        wait_ready(port)
        held = [
            during(port, "a worker's init killed", lambda: kill("worker")),
            during(port, "an API restarted behind the proxy", lambda: restart_one("api")),
            is_stopped_in_order(),
        ]
    finally:
        compose("down", "--timeout", "40")
    return 0 if all(held) else 1


def during(port: int, what: str, strike: Callable[[], None]) -> bool:
    """Do something under load, and tell whether every request was answered right."""
    load = Load(port)
    with load.running():
        time.sleep(LOAD_SECONDS / 2)
        strike()
        time.sleep(LOAD_SECONDS)
    print(f"{what}: {load.right} right, {len(load.wrong)} not: {load.wrong[:3]}")
    return bool(load.right) and not load.wrong


def is_stopped_in_order() -> bool:
    """Stop as an operator does, and tell whether all went by themselves, in the walk's order."""
    began = time.monotonic()
    compose("stop")
    seconds = time.monotonic() - began
    exits = compose("ps", "--all", "--format", "{{.Service}} {{.ExitCode}}").split("\n")
    killed = [line for line in exits if line.endswith(" 137") and not line.startswith("worker")]
    print(f"stopped in {seconds:.1f} s; killed, besides the worker we killed: {killed}")
    return not killed


def kill(service: str) -> None:
    """Kill the init of one of a service's containers."""
    subprocess.run([ENGINE, "kill", "--signal", "KILL", first(service)], check=True)


def restart_one(service: str) -> None:
    """Restart one of a service's containers."""
    subprocess.run([ENGINE, "restart", "--time", "40", first(service)], check=True)


def first(service: str) -> str:
    """Return the id of a service's first container."""
    return compose("ps", "--quiet", service).split()[0]


def wait_ready(port: int) -> None:
    """Wait until the proxy says that every model is served; raises TimeoutError."""
    until = time.monotonic() + READY_SECONDS
    while time.monotonic() < until:
        connection = HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/v2/health/ready")
            if connection.getresponse().status == OK:
                return
        except (OSError, HTTPException):
            pass
        finally:
            connection.close()
        time.sleep(1)
    raise TimeoutError(f"not ready after {READY_SECONDS:g} s: {shlex.join(COMPOSE)} logs")


def runs(command: list[str]) -> bool:
    """Tell whether a command is there and ends well."""
    try:
        done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def compose(*arguments: str) -> str:
    """Run Compose in the checkout; raises CalledProcessError."""
    done = subprocess.run(
        [*COMPOSE, *arguments], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
    )
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
