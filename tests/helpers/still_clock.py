"""A clock for tests of what waits."""

from __future__ import annotations


class StillClock:
    """The time, which stands still until a test moves `now`."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now
