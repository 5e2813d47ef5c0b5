"""A child that outlives `ferry up` by a moment and ends the processes of a killed one.

`ferry up` and the processes it forks hold the write end of a pipe; this holds the read end. Each
started process is written into the pipe as one line, and the kernel closes the pipe however
`ferry up` ends, kill -9 included. The reaper also holds the lock on the state directory, so the
next `ferry up` cannot start before it is through.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ferry.up.sessions import kill, kill_session

# Five sessions to kill take as long at worst; after an orderly stop there is none.
EXIT_TIMEOUT_SECONDS = 6.0


class Reaper:
    """The handle on the child; `ferry up` keeps it, and the processes it forks inherit it."""

    def __init__(self, lock: int) -> None:
        """Start the child; `lock` is the descriptor of the locked file that it holds on to."""
        self._child = subprocess.Popen(
            [sys.executable, "-m", "ferry.up.reaper"],
            stdin=subprocess.PIPE,
            start_new_session=True,
            cwd=Path(__file__).parents[2],
            pass_fds=[lock],
        )

    def start(self, command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
        """Start as subprocess.Popen does, in a session that is watched from its first instruction.

        Were it watched by us once it runs, a kill -9 in between would leave it behind.
        """
        script = 'echo "session $$" >&0; exec "$@" </dev/null'
        return subprocess.Popen(
            ["sh", "-c", script, "sh", *command],
            stdin=self._child.stdin,
            start_new_session=True,
            **options,
        )

    def watch_session(self, leader: int) -> None:
        """Kill the rest of the session of `leader` when we end, in whatever way."""
        self._write(f"session {leader}")

    def watch_process(self, process: int) -> None:
        """Kill this one process when we end."""
        self._write(f"process {process}")

    def watch_path(self, path: Path) -> None:
        """Remove this file or directory when we end."""
        self._write(f"path {path}")

    def leave(self) -> None:
        """Close the pipe in a forked process, which would hold it open as if `ferry up` lived."""
        assert self._child.stdin is not None
        self._child.stdin.close()

    def finish(self) -> None:
        """End the child; it first ends the processes left, after an orderly stop none."""
        self.leave()
        self._child.wait(EXIT_TIMEOUT_SECONDS)

    def _write(self, line: str) -> None:
        assert self._child.stdin is not None
        # Unbuffered and shorter than PIPE_BUF, so lines of several processes do not mix.
        os.write(self._child.stdin.fileno(), f"{line}\n".encode())


def reap(lines: Iterable[str]) -> None:
    """Read until the pipe closes, then end the watched processes, first started first."""
    orders = [line.rstrip("\n").partition(" ")[::2] for line in lines]
    for kind, what in orders:
        if kind == "session":
            kill_session(int(what))
        elif kind == "process":
            kill(int(what))
    # Only now: no server is left that could make its socket anew.
    for kind, what in orders:
        if kind == "path":
            _remove(Path(what))


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def main() -> None:
    """Run as the child: ignore the signals that `ferry up` gets, end when the pipe does."""
    for signal_number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signal_number, signal.SIG_IGN)
    reap(sys.stdin)


if __name__ == "__main__":
    main()
