"""Processes of one session: whatever a process started, unless it left on purpose.

A session, not a process group: rq gives each job a group of its own, and it must end all the same.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

KILL_TIMEOUT_SECONDS = 1.0
_ZOMBIE_STATES = "ZX"


def members(session: int) -> list[int]:
    """Return the ids of the living processes of `session`, which its leader's id names."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The second field is the program's name in parentheses and may hold anything.
            state, _parent, _group, its_session = stat.read_text().rpartition(")")[2].split()[:4]
        except (OSError, ValueError):
            continue  # ended while we looked
        if int(its_session) == session and state not in _ZOMBIE_STATES:
            found.append(int(stat.parent.name))
    return found


def kill_session(session: int) -> None:
    """Kill all of `session` and return once none lives; where there is no /proc, its group."""
    if not Path("/proc/self/stat").exists():
        _kill_group(session)
        return
    deadline = time.monotonic() + KILL_TIMEOUT_SECONDS
    while (living := members(session)) and time.monotonic() < deadline:
        for process in living:
            kill(process)
        time.sleep(0.005)


def kill(process: int) -> None:
    """Kill one process; nothing happens when it is gone already."""
    send(process, signal.SIGKILL)


def send(process: int, signal_number: int) -> None:
    """Send a signal to one process; nothing happens when it is gone already."""
    try:
        os.kill(process, signal_number)
    except ProcessLookupError:
        return


def _kill_group(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return
