"""The processes of a benchmark: each leads a session of its own and ends with its block."""

from __future__ import annotations

import select
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ferry.up.sessions import kill_session

PROJECT_ROOT = Path(__file__).resolve().parent.parent
STOP_TIMEOUT_SECONDS = 10.0


class BenchError(Exception):
    """A process did not start, ended, or did not answer: there is nothing to measure."""


@contextmanager
def running(
    command: Sequence[str], environ: Mapping[str, str], log_file: Path, *, piped: bool = False
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command in the project's directory for as long as the block; it logs to `log_file`.

    `piped` connects its standard input and output to us instead.
    """
    with log_file.open("ab") as log:
        process = subprocess.Popen(
            command,
            env=dict(environ),
            cwd=PROJECT_ROOT,
            stdin=subprocess.PIPE if piped else subprocess.DEVNULL,
            stdout=subprocess.PIPE if piped else log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    with suppress(subprocess.TimeoutExpired):  # then it is killed, with whatever it started
        process.wait(STOP_TIMEOUT_SECONDS)
    kill_session(process.pid)
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


@dataclass(frozen=True)
class Child:
    """A piped process that measures when told to: one order a line, one answer a line."""

    process: subprocess.Popen[bytes]
    log_file: Path

    def tell(self, line: str) -> None:
        """Send one order."""
        assert self.process.stdin is not None, "started with pipes"
        self.process.stdin.write(f"{line}\n".encode())
        self.process.stdin.flush()

    def answer(self, timeout_seconds: float) -> str:
        """Return the next line; raises BenchError when it does not come or the process ended."""
        assert self.process.stdout is not None, "started with pipes"
        # subtle: with one line per order, none hides in the reader's buffer where select is blind.
        readable, _, _ = select.select([self.process.stdout], [], [], timeout_seconds)
        line = self.process.stdout.readline().decode().strip() if readable else ""
        if not line:
            raise BenchError(f"{self.log_file.name}: no answer: {last_lines(self.log_file)}")
        return line


def last_lines(log_file: Path) -> str:
    """Return the end of a log, for an error message."""
    return " / ".join(log_file.read_text(errors="replace").splitlines()[-5:]) or "(empty log)"


def free_port() -> int:
    """Return a loopback port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
