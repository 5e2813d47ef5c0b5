"""Bounds the start of processes, for which a forkserver is asked that may hang."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable
from multiprocessing import forkserver
from threading import Event, Lock, Thread
from typing import Any

log = logging.getLogger(__name__)

LONGEST_START_SECONDS = 300.0
"""For a new forkserver to import what instances need, and to start a process."""
HUNG_SECONDS = 60.0
"""The same for one that has started a process before."""


class StartGuard:
    """Used as `with guard: process.start()`, by one thread at a time.

    Whoever starts a process waits for the forkserver, in which time it does nothing else. So a
    thread of the guard's renews the supervisor's sign of life meanwhile, or others would take over
    what it has; and it kills a forkserver that takes too long. Then the start fails, with OSError
    or EOFError, and the next one brings another forkserver. Its instances die with it, of whose
    ends it could not tell any more, and are replaced.
    """

    def __init__(self, beat: Callable[[], None], every_seconds: float) -> None:
        """Call `beat` so often while a start is under way."""
        self._beat = beat
        self._every_seconds = every_seconds
        self._is_starting = Event()
        self._began_at = 0.0
        self._proven: int | None = None
        self._thread: Thread | None = None
        self._lock = Lock()

    def __enter__(self) -> None:
        """Begin to watch."""
        if self._thread is None:
            self._thread = Thread(target=self._watch, name="ferry-starts", daemon=True)
            self._thread.start()
        with self._lock:
            self._began_at = time.monotonic()
            self._is_starting.set()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Watch no more, until the next start."""
        with self._lock:
            self._is_starting.clear()
            self._proven = _forkserver_pid() if kind is None else None

    def _watch(self) -> None:
        while self._is_starting.wait():
            time.sleep(self._every_seconds)
            if self._is_starting.is_set():
                self._beat()
                with self._lock:  # subtle: the start may have come to its end meanwhile
                    if self._is_starting.is_set():
                        self._end_what_hangs()

    def _end_what_hangs(self) -> None:
        pid = _forkserver_pid()
        limit = HUNG_SECONDS if pid == self._proven else LONGEST_START_SECONDS
        if pid is not None and time.monotonic() - self._began_at > limit:
            log.error("the forkserver starts no process for %.0f s, killing it", limit)
            os.kill(pid, signal.SIGKILL)
            self._began_at = time.monotonic()


def _forkserver_pid() -> int | None:
    running: Any = forkserver  # the module tells nobody by a public name
    pid: int | None = running._forkserver._forkserver_pid
    return pid
