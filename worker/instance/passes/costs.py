"""Learns what a model's forward passes cost from the passes themselves."""

from __future__ import annotations

from typing import NamedTuple

FORGETTING = 0.97
"""What a pass still weighs when the next one has been: the last thirty or so tell the cost."""
LEAST_SPREAD = 0.05
"""Of the mean: passes that are all as large tell nothing of what a smaller one would cost."""


class PassCost(NamedTuple):
    """What a forward pass takes: seconds by itself, and for each element of its padded rows."""

    seconds: float
    element_seconds: float


class PassCosts:
    """Learns what a model's passes cost from the passes themselves, the older the less."""

    def __init__(self) -> None:
        """Know nothing yet."""
        self._count = self._x = self._y = self._xx = self._xy = 0.0

    def learn(self, elements: int, seconds: float) -> None:
        """Take a pass over so many padded elements into account."""
        self._count = FORGETTING * self._count + 1
        self._x = FORGETTING * self._x + elements
        self._y = FORGETTING * self._y + seconds
        self._xx = FORGETTING * self._xx + elements * elements
        self._xy = FORGETTING * self._xy + elements * seconds

    def known(self) -> PassCost | None:
        """Return the line of least squares, None where passes do not tell its slope."""
        spread = self._count * self._xx - self._x**2
        if spread <= (LEAST_SPREAD * self._x) ** 2:
            return None
        slope = (self._count * self._xy - self._x * self._y) / spread
        if slope <= 0:
            return None
        return PassCost(max(0.0, (self._y - slope * self._x) / self._count), slope)


class Sharing(NamedTuple):
    """Which requests of a batch share a forward pass: all, unless something is said here."""

    one_length: bool = False
    """Those of the same length alone: padding would change their answers."""
    costs: PassCosts | None = None
    """Those of like length, where several passes take less time than the padding of one."""
