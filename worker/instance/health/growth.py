"""An instance's memory: what a large batch leaves behind is given back, or ends the instance."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable
from pathlib import Path

GROWTH_LOOK_SECONDS = 0.5
"""fast: between two looks, which cost 10 us each (2026-11-30)."""
TRIMMED_BYTES = 128 * 2**20
"""After so much growth the allocator is asked for what it keeps for later."""


def held_bytes() -> int:
    """Return the memory that this process holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


class Growth:
    """Watches what an instance holds beyond what it held once it was warm."""

    def __init__(self, max_bytes: int, held: Callable[[], int] = held_bytes) -> None:
        """Allow `max_bytes` more than now; 0 is any number."""
        self._held = held
        self._max_bytes = max_bytes
        self._warm_bytes = self._known_bytes = held()
        self._next_look = time.monotonic() + GROWTH_LOOK_SECONDS

    def reason(self) -> str:
        """Return why the instance is to be replaced, empty when it is not; to be asked often."""
        now = time.monotonic()
        if not self._max_bytes or now < self._next_look:
            return ""
        self._next_look = now + GROWTH_LOOK_SECONDS
        if self._held() - self._known_bytes > TRIMMED_BYTES:
            ctypes.CDLL(None).malloc_trim(0)
            self._known_bytes = self._held()
        grown = self._held() - self._warm_bytes
        if grown <= self._max_bytes:
            return ""
        return (
            f"it holds {grown / 2**20:.0f} MiB more than when it was ready, more than "
            f"FERRY_MAX_GROWTH_BYTES={self._max_bytes}"
        )
