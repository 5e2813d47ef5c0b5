"""A `ferry up` of trivial processes, for tests that start, stop and kill it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis
from ferry_processes import free_port

from ferry.up.up import PROJECT_ROOT

STOP_SECONDS = 30.0
START_SECONDS = 30.0

# One process of the Procfile: notes its start and its end, and whether Valkey was there still.
# fast: it imports little, since a hundred of them are started.
PROCESS = """
import os, signal, sys, time
name, log, mode = sys.argv[1:]
def ping():
    import socket
    with socket.socket(socket.AF_UNIX) as valkey:
        valkey.connect(os.environ["REDIS_URL"].removeprefix("unix://"))
        valkey.sendall(b"PING\\r\\n")
        return valkey.recv(100) == b"+PONG\\r\\n"
def note(what):
    with open(log, "a") as file:
        file.write(f"{what} {name} {os.getpid()}\\n")
def stop(number, frame):
    note("stopped" if ping() else "alone")
    sys.exit(0)
signal.signal(signal.SIGTERM, signal.SIG_IGN if mode == "stubborn" else stop)
if mode == "parent":
    import subprocess
    subprocess.Popen([sys.executable, "-c", "import os, time; os.setpgrp(); time.sleep(600)"])
if mode == "http":
    import http.server, threading
    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
    address = ("127.0.0.1", int(os.environ["FERRY_PORT"]))
    server = http.server.HTTPServer(address, Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
note("started")
print(name, "FERRY_MODELS=" + os.environ["FERRY_MODELS"], os.environ["PATH"].split(":")[0])
while True:
    time.sleep(0.2 if mode == "chatty" else 600)
    print("still there")
"""
ALL = ("api", "grpc", "worker", "jobs", "dashboard")


class FerryUp:
    """A `ferry up` in a directory of its own, whose every descendant carries a mark."""

    def __init__(
        self,
        directory: Path,
        environ: dict[str, str] | None = None,
        stdout: int | None = None,
        prefix: tuple[str, ...] = (),
        **modes: str,
    ) -> None:
        self.directory = directory
        self.state_dir = directory / "state"
        number = len(list(directory.glob("output-*")))
        self.log = directory / f"log-{number}"
        self.output = directory / f"output-{number}"
        self.mark = f"FERRYTEST_MARK={uuid.uuid4()}"
        (directory / "models").mkdir(exist_ok=True)
        (directory / "process.py").write_text(PROCESS)
        (directory / "Procfile").write_text("".join(self._line(n, modes.get(n, "-")) for n in ALL))
        environ = (
            os.environ | {"PYTHONPATH": str(PROJECT_ROOT)} | self._settings() | (environ or {})
        )
        # The tests themselves may run under nohup, whose deafness to SIGHUP children inherit.
        command = ["env", "--default-signal=HUP", *prefix]
        command += [sys.executable, "-m", "ferry", "up", "--models", "models"]
        command += ["--procfile", str(directory / "Procfile")]
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                command,
                cwd=directory,
                env=environ,
                stdout=output if stdout is None else stdout,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _line(self, name: str, mode: str) -> str:
        program = f"{sys.executable} -S {self.directory}/process.py"
        return f"{name}: exec {program} {name} {self.log} {mode}\n"

    def _settings(self) -> dict[str, str]:
        name, _, value = self.mark.partition("=")
        ports = {
            f"FERRY_{each}": str(free_port()) for each in ("PORT", "GRPC_PORT", "DASHBOARD_PORT")
        }
        return {name: value, "FERRY_STATE_DIR": "state", "REDIS_URL": ""} | ports

    def wait_for_start(self) -> FerryUp:
        wait_until(lambda: len(self.noted("started")) == len(ALL), START_SECONDS, self.text)
        return self

    def noted(self, what: str) -> list[str]:
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [line.split()[1] for line in lines if line.startswith(f"{what} ")]

    def process_id(self, name: str) -> int:
        lines = self.log.read_text().splitlines()
        return next(int(line.split()[2]) for line in lines if line.startswith(f"started {name} "))

    def valkey(self) -> redis.Redis:
        return redis.Redis.from_url(f"unix://{self.state_dir}/valkey.sock")

    def descendants(self) -> list[str]:
        """Return what carries our mark or, as Valkey writes over its environment, our path."""
        ours = self.mark.encode(), f"{self.state_dir}/".encode()
        commands = {
            path.parent: read_or_nothing(path) for path in Path("/proc").glob("[0-9]*/cmdline")
        }
        return [
            f"{process.name}: {command!r}"
            for process, command in commands.items()
            if any(sign in command + read_or_nothing(process / "environ") for sign in ours)
        ]

    def text(self) -> str:
        return self.output.read_text()

    def end(self, seconds: float = STOP_SECONDS) -> int:
        """Return the exit code, having checked that nothing is left of it."""
        code = self.process.wait(seconds)
        assert self.descendants() == []
        assert list(self.state_dir.glob("*.sock")) == []
        return code


def read_or_nothing(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def wait_until(condition: Callable[[], bool], seconds: float, explain: Callable[[], str]) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, explain()
        time.sleep(0.02)


def wait_until_gone(ferry: FerryUp) -> None:
    wait_until(lambda: not ferry.descendants(), STOP_SECONDS, lambda: str(ferry.descendants()))


@contextmanager
def starter(directory: Path) -> Iterator[Callable[..., FerryUp]]:
    """Yield a function that starts one with an environment and modes; end all of them after."""
    started: list[FerryUp] = []

    def start(environ: dict[str, str] | None = None, **options: Any) -> FerryUp:
        started.append(FerryUp(directory, environ, **options))
        return started[-1]

    yield start
    for ferry in started:
        ferry.process.kill()
        ferry.process.wait()
    for ferry in started:
        wait_until_gone(ferry)
