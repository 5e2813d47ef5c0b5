"""The Procfile's processes, run by honcho and stopped in the order of a request's walk."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from types import FrameType
from typing import Any

from honcho.environ import parse_procfile
from honcho.manager import Manager
from honcho.printer import Message, Printer
from honcho.process import Popen, Process

from ferry.errors import CannotStart
from ferry.up.reaper import Reaper
from ferry.up.sessions import kill, kill_session, send

# Who is stopped when, and how many seconds after the stop began it is killed. The two APIs go
# first, so that what they have taken is still answered (gunicorn keeps idle connections for two
# seconds before it goes, 2026-11-21); what is not named goes last. All of it, with Valkey's second
# and a half, stays below the ten seconds that an operator is promised.
STOP_ORDER = (({"api", "grpc"}, 4.5), ({"worker"}, 6.0))
LAST_STOP_SECONDS = 7.0
QUIET_LOOK_SECONDS = 5.0


def read_procfile(path: Path) -> dict[str, str]:
    """Return name → shell command, in the file's order."""
    try:
        processes = dict(parse_procfile(path.read_text(encoding="utf-8")).processes)
    except OSError as error:
        raise CannotStart(f"{path}: {error.strerror}; ferry up runs from a checkout") from error
    if not processes:
        raise CannotStart(f"{path}: no process in it")
    return processes


def stop_signals() -> list[signal.Signals]:
    """Return the signals that stop us: SIGINT, SIGTERM and, unless `nohup` ignores it, SIGHUP."""
    hung_up = [] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [signal.SIGHUP]
    return [signal.SIGINT, signal.SIGTERM, *hung_up]


class ManagedProcess(Process):  # type: ignore[misc]
    """One Procfile process in a session of its own, and the fork of ours that reads its output."""

    def __init__(self, reaper: Reaper, *arguments: Any, **options: Any) -> None:
        """Take honcho's arguments, and the reaper to tell of each start."""
        super().__init__(*arguments, **options)
        self._reaper = reaper
        self._child_ctor = self._spawn

    def run(self, events: Any = None, ignore_signals: bool = False) -> None:
        """Run in the fork: start the process, pass its output on, report its end."""
        os.setpgrp()  # the terminal's Ctrl-C and hang-up are for `ferry up` alone
        self._reaper.watch_process(os.getpid())
        super().run(events, ignore_signals)

    def _spawn(self, command: str, **options: Any) -> _SessionLeader:
        child = _SessionLeader(command, **options)
        self._reaper.watch_session(child.pid)
        self._reaper.leave()
        return child


class _SessionLeader(Popen):  # type: ignore[misc]
    """A process whose end kills the rest of its session."""

    def __init__(self, command: str, **options: Any) -> None:
        super().__init__(command, **options)
        self._end_of_session = threading.Thread(target=self._end_session, daemon=True)
        self._end_of_session.start()

    def wait(self, timeout: float | None = None) -> int:
        self._end_of_session.join(timeout)
        code: int = super().wait(timeout)
        return code

    def _end_session(self) -> None:
        # subtle: what the leader leaves behind holds its output open, and honcho takes the end of
        # the output for the end of the process. WNOWAIT keeps the leader's id taken until `wait`.
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        kill_session(self.pid)


class OrderedManager(Manager):  # type: ignore[misc]
    """honcho's manager with an ordered stop: the APIs, then the worker, then the rest.

    `stop_signals` and the death of any process begin the stop; `failed` says afterwards whether a
    death did. A second SIGINT makes `hurry` true and kills what is left.
    """

    def __init__(
        self, reaper: Reaper, watchers: Sequence[Callable[[OrderedManager], None]]
    ) -> None:
        """Prepare; each of `watchers` gets a thread and the manager once all processes run."""
        super().__init__(Printer(_Output(lambda: self.stop("the output was closed"))))
        self._process_ctor = lambda *given, **options: ManagedProcess(reaper, *given, **options)
        self._watchers = watchers
        self.events.get = partial(self._next_event, self.events.get)
        self._reasons: SimpleQueue[str] = SimpleQueue()
        self._ended = False
        self.stopping = False
        self.stop_began = 0.0
        self.failed = False
        self.hurry = False

    def _next_event(self, get: Callable[..., Message], timeout: float) -> Message:
        """Return what happens next to a process; honcho would look ten times a second for it."""
        return get(timeout=timeout if self.stopping else QUIET_LOOK_SECONDS)

    def add_all(self, processes: Mapping[str, str], environ: dict[str, str], cwd: Path) -> None:
        """Add the processes of a Procfile, none of them started yet."""
        for name, command in processes.items():
            self.add_process(name, command, env=environ, cwd=str(cwd))

    def say(self, line: str) -> None:
        """Print a line among the processes' own; for watchers' threads, not for signal handlers."""
        now = self._clock.now()
        self.events.put(Message(type="line", data=line, time=now, name="ferry", colour=None))

    def stop(self, reason: str, failed: bool = False) -> None:
        """Begin to stop everything; only the first call counts."""
        if not self.stopping:
            self.stopping = True
            self.failed = failed
            # SimpleQueue may be put to in a signal handler; an Event or a Queue may not.
            self._reasons.put(reason)

    def terminate(self) -> None:
        """Stop, when honcho's loop has seen a process end."""
        codes = {name: process.get("returncode") for name, process in self._processes.items()}
        ended = [
            f"{name} ended (exit code {code})" for name, code in codes.items() if code is not None
        ]
        self.stop(", ".join(ended) or "asked to", failed=bool(ended))

    def kill(self) -> None:
        """Do nothing: honcho's loop would kill by its own clock, and ours decides."""

    def _start(self) -> None:
        for number in stop_signals():
            signal.signal(number, self._on_signal)
        super()._start()
        # Threads only now: a fork copies locks that other threads hold.
        threading.Thread(target=self._stop_in_order, daemon=True).start()
        for watcher in self._watchers:
            threading.Thread(target=watcher, args=(self,), daemon=True).start()

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        # Only a second SIGINT hurries: make and process groups deliver SIGTERM twice.
        self.hurry = self.hurry or (self.stopping and number == signal.SIGINT)
        self.stop(f"{signal.Signals(number).name} received")

    def _stop_in_order(self) -> None:
        self.say(f"{self._reasons.get()}; stopping")
        self.stop_began = time.monotonic()
        # A process that honcho has not reported yet cannot be told anything.
        while not self._all_started() and self._stopping_seconds() < STOP_ORDER[0][1]:
            time.sleep(0.01)
        left = set(self._processes)
        for names, limit_seconds in STOP_ORDER:
            self._stop_some(left & names, limit_seconds)
            left -= names
        self._stop_some(left, LAST_STOP_SECONDS)
        for process in self._processes.values():
            if "returncode" not in process:
                kill(process["process"].pid)
        self._ended = True

    def _stop_some(self, names: set[str], limit_seconds: float) -> None:
        # SIGTERM to the process alone: gunicorn and the worker's supervisor tell their children.
        for name in self._alive(names):
            send(self._processes[name]["pid"], signal.SIGTERM)
        while self._alive(names) and not self.hurry and self._stopping_seconds() < limit_seconds:
            time.sleep(0.01)
        for name in self._alive(names):
            why = "SIGINT came again" if self.hurry else "it did not stop in time"
            self.say(f"{name} is killed: {why}")
            kill_session(self._processes[name]["pid"])
        deadline = time.monotonic() + 0.5
        while self._alive(names) and time.monotonic() < deadline:
            time.sleep(0.01)

    def _stopping_seconds(self) -> float:
        return time.monotonic() - self.stop_began

    def _alive(self, names: set[str]) -> list[str]:
        known = self._processes
        return sorted(
            name for name in names if "pid" in known[name] and "returncode" not in known[name]
        )

    def _all_stopped(self) -> bool:
        return self._ended or super()._all_stopped()


class _Output:
    """stdout; a closed terminal or pipe begins the stop instead of raising."""

    def __init__(self, on_loss: Callable[[], None]) -> None:
        self._on_loss = on_loss

    def isatty(self) -> bool:
        return sys.stdout.isatty()

    def write(self, text: str) -> None:
        self._attempt(lambda: sys.stdout.write(text))

    def flush(self) -> None:
        self._attempt(sys.stdout.flush)

    def _attempt(self, action: Callable[[], object]) -> None:
        try:
            action()
        except OSError:
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, sys.stdout.fileno())
            os.close(nothing)
            self._on_loss()
