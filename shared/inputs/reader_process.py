"""A process that reads what a client sent, in bounded time and memory: its two ends.

What it reads may take it down; who asked goes on without it. It reads from its standard input, a
socket, and ends with that. It hears no signal that is meant for a whole group or service.
"""

from __future__ import annotations

import os
import resource
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from shared.messages import Buffer

FRAME = struct.Struct("<IQ")
"""In front of a task: the length of its head, msgpack, and of its body. A reply has no body."""
MEMORY_BYTES = 2 * 2**30
KEPT_BYTES = 256 * 2**20
"""A reader that holds more behind a task ends: the next one starts anew."""
UNREADABLE = "the body takes more time or memory to read than any sound one: it is refused"
TOO_MUCH_MEMORY = "the body needs more memory to be read than any sound one"


class ReaderProcess:
    """One process, as those see it that ask it."""

    def __init__(self, module: str, *arguments: str) -> None:
        """Start `module`, whose `main` calls `serve`."""
        self._line, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
            )

    def ask(self, head: bytes, parts: Sequence[Buffer], until: float) -> memoryview | None:
        """Return the reply, None when there is none by `until`, or no process any more."""
        total = sum(map(len, parts))
        try:
            self._line.settimeout(max(0.001, until - time.monotonic()))
            self._line.sendall(FRAME.pack(len(head), total) + head)
            for part in parts:
                self._line.sendall(part)
            frame = receive(self._line, FRAME.size)
            return None if frame is None else receive(self._line, FRAME.unpack(frame)[0])
        except OSError:
            return None

    @property
    def has_ended(self) -> bool:
        """Tell whether it came to an end by itself, or somebody else's hand."""
        return self._process.poll() is not None

    def end(self) -> int:
        """Make an end of it; return how it ended, 0 where it did so by itself, unharmed."""
        self._line.close()
        try:
            return self._process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


def serve(
    answer: Callable[[bytes, memoryview], bytes], seconds: float, idle_seconds: float | None = None
) -> None:
    """Answer one task after the other, a head and a body, each within its processor time.

    The kernel ends who takes more `seconds`, or more memory. Returns when nobody asks any more, or
    when nobody has for `idle_seconds`.
    """
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    line = socket.socket(fileno=os.dup(0))
    while select.select([line], [], [], idle_seconds)[0]:
        frame = receive(line, FRAME.size)
        if frame is None:
            return
        head_bytes, body_bytes = FRAME.unpack(frame)
        head, body = receive(line, head_bytes), receive(line, body_bytes)
        if head is None or body is None:
            return
        allow(seconds)
        reply = answer(bytes(head), body)
        allow(0)
        line.sendall(FRAME.pack(len(reply), 0) + reply)
        del head, body, reply
        if _held_bytes() > KEPT_BYTES:
            return


def allow(seconds: float) -> None:
    """Have the kernel end this process after so much more processor time; 0 for never."""
    signal.setitimer(signal.ITIMER_PROF, seconds)


def receive(line: socket.socket, size: int) -> memoryview | None:
    """Return `size` bytes, None where the other end has closed."""
    data, filled = bytearray(size), 0
    view = memoryview(data)
    while filled < size:
        count = line.recv_into(view[filled:])
        if not count:
            return None
        filled += count
    return view


def _held_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()
