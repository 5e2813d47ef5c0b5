"""The directory that one `ferry up` holds for itself: lock, socket, append-only file."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from ferry.errors import CannotStart

# As long as a predecessor's reaper may take; a second `ferry up` is told after this.
LOCK_TIMEOUT_SECONDS = 2.0


def lock(directory: Path) -> int:
    """Make `directory` (mode 700) and lock it; return the descriptor that holds the lock.

    The lock goes when the last process that inherited the descriptor ends, so it cannot go stale.
    Raises CannotStart when another `ferry up` has it.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + LOCK_TIMEOUT_SECONDS
    while not _try_lock(descriptor):
        if time.monotonic() > deadline:
            holder = os.read(descriptor, 32).decode(errors="replace").strip()
            os.close(descriptor)
            raise CannotStart(
                f"another ferry up (process {holder}) runs in {directory}; "
                "stop it, or set FERRY_STATE_DIR to another directory"
            )
        time.sleep(0.05)
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"{os.getpid()}\n".encode())
    return descriptor


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
