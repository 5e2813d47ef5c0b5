"""Runs docker-compose.yml under load and looks at its promises: `make test-compose`.

Up with three workers and two APIs, a worker's init killed, an API restarted behind the proxy, then
the stop in Compose's order: no answer may be missing or wrong, and behind the proxy none refused.
It has a project of its own (`ferry-story`), ports that are free and volumes that go with it, so
that a Ferry which runs on this machine stays as it is. `tools/engines.py` says what it needs.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from threading import Event, Thread

from tools.engines import ROOT, Engine, found_engine

MODEL = "tiny"
CLIENTS = 8
READY_SECONDS = 300.0
LOAD_SECONDS = 8.0
STOP_SECONDS = 40
"""Longer than a request's deadline, which an API that is told to stop may wait out."""
LOOKING = ("ferry workers", "ferry queue", "ferry models list", "ferry dead list", "ferry doctor")
HAS_TORCH = "__import__('importlib.util').util.find_spec('torch')is not None"
OK = 200
TOLERANCE = 1e-4
SHOWN = 5


class Load:
    """Clients that ask through the proxy, and what came instead of the answers they know."""

    def __init__(self, port: int) -> None:
        """Ask nothing yet."""
        self._port = port
        self._stopped = Event()
        self.began = time.monotonic()
        self.right = 0
        self.slowest = 0.0
        self.wrong: list[str] = []

    def ask(self, connection: HTTPConnection, number: int) -> tuple[int, bytes]:
        """Return an answer's status and body; raises OSError and HTTPException without one."""
        row = [float(number + place) for place in range(16)]
        tensor = {"name": "INPUT__0", "datatype": "FP32", "shape": [1, 16], "data": row}
        connection.request("POST", f"/v2/models/{MODEL}/infer", json.dumps({"inputs": [tensor]}))
        answer = connection.getresponse()
        return answer.status, answer.read()

    def run(self, number: int) -> None:
        """Ask the same again and again, until told to stop."""
        expected: list[float] = []
        connection = HTTPConnection("127.0.0.1", self._port, timeout=60)
        while not self._stopped.is_set():
            asked = time.monotonic()
            try:
                status, said = self.ask(connection, number)
            except (OSError, HTTPException) as error:
                connection.close()
                self._note(asked, repr(error))
                continue
            data = json.loads(said)["outputs"][0]["data"] if status == OK else []
            expected = expected or data
            if status == OK and is_same(data, expected):
                self.right += 1
                self.slowest = max(self.slowest, time.monotonic() - asked)
            else:
                self._note(asked, f"{status}, another answer: {said[:200]!r}")
        connection.close()

    def _note(self, asked: float, what: str) -> None:
        """Note an answer that is wrong, or none, and when it was asked for."""
        since, took = asked - self.began, time.monotonic() - asked
        self.wrong.append(f"asked at {since:.1f} s, after {took:.1f} s: {what}")

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
    with lone_model() as models, found_engine({"FERRY_MODELS": models} | os.environ) as engine:
        if isinstance(engine, str):
            print(f"test-compose: {engine}", file=sys.stderr)
            return 2
        print(f"test-compose: {engine}", flush=True)
        try:
            return 0 if story(engine) else 1
        except (subprocess.CalledProcessError, TimeoutError) as failure:
            print(f"test-compose: {failure}", file=sys.stderr)
            return 1


@contextmanager
def lone_model() -> Iterator[str]:
    """Yield a repository of the one model that is asked, for whoever may not be us."""
    with tempfile.TemporaryDirectory(prefix="ferry-models-") as directory:
        os.chmod(directory, 0o755)
        if (ROOT / "models" / MODEL).exists():
            shutil.copytree(ROOT / "models" / MODEL, Path(directory) / MODEL)
        yield directory


def story(engine: Engine) -> bool:
    """Tell whether all of it held; raises CalledProcessError and TimeoutError."""
    try:
        engine.compose("up", "--detach", "--build", "--scale", "worker=3", "--scale", "api=2")
        wait_ready(engine)
        held = [
            is_looked_into(engine),
            during(engine, "a worker's init killed", lambda: kill(engine, "worker")),
            during(engine, "an API restarted behind the proxy", lambda: restart(engine, "api")),
            is_stopped_in_order(engine),
        ]
        if not all(held):
            print(engine.compose("logs", "--no-color", "--tail", "40", "nginx", "api"))
        return all(held)
    finally:
        engine.compose("down", "--volumes", "--timeout", f"{STOP_SECONDS}")


def is_looked_into(engine: Engine) -> bool:
    """Tell whether each command of LOOKING works in the images, and the API's has no torch."""
    failed = []
    for service in ("worker", "api"):
        for command in LOOKING:
            try:
                engine.compose("exec", "-T", service, *command.split())
            except subprocess.CalledProcessError:
                failed.append(f"{service}: {command}")
    there = engine.compose("exec", "-T", "api", "python", "-c", f"print({HAS_TORCH})")
    print(f"in the containers failed: {failed}; torch in the API's: {there}", flush=True)
    return not failed and there == "False"


def during(engine: Engine, what: str, strike: Callable[[], None]) -> bool:
    """Do something under load, and tell whether every request was answered right."""
    load = Load(engine.port)
    with load.running():
        time.sleep(LOAD_SECONDS / 2)
        began = time.monotonic()
        strike()
        struck = time.monotonic()
        time.sleep(LOAD_SECONDS)
    print(
        f"{what}, from {began - load.began:.1f} to {struck - load.began:.1f} s: {load.right} right,"
        f" the slowest after {load.slowest:.1f} s, {len(load.wrong)} not",
        *load.wrong[:SHOWN],
        sep="\n    ",
        flush=True,
    )
    return bool(load.right) and not load.wrong


def is_stopped_in_order(engine: Engine) -> bool:
    """Stop as an operator does, and tell whether all went by themselves, in the walk's order."""
    began = time.monotonic()
    engine.compose("stop")
    seconds = time.monotonic() - began
    exits = engine.compose("ps", "--all", "--format", "{{.Service}} {{.ExitCode}}").split("\n")
    killed = [line for line in exits if line.endswith(" 137") and not line.startswith("worker")]
    print(f"stopped in {seconds:.1f} s; killed, besides the worker we killed: {killed}")
    return not killed


def kill(engine: Engine, service: str) -> None:
    """Kill the init of one of a service's containers."""
    engine.run("kill", "--signal", "KILL", engine.first(service))


def restart(engine: Engine, service: str) -> None:
    """Restart one of a service's containers."""
    engine.run("restart", "--time", f"{STOP_SECONDS}", engine.first(service))


def wait_ready(engine: Engine) -> None:
    """Wait until the proxy says that every model is served; raises TimeoutError."""
    until = time.monotonic() + READY_SECONDS
    while time.monotonic() < until:
        connection = HTTPConnection("127.0.0.1", engine.port, timeout=5)
        try:
            connection.request("GET", "/v2/health/ready")
            if connection.getresponse().status == OK:
                return
        except (OSError, HTTPException):
            pass
        finally:
            connection.close()
        time.sleep(1)
    raise TimeoutError(f"not ready after {READY_SECONDS:g} s")


if __name__ == "__main__":
    sys.exit(main())
