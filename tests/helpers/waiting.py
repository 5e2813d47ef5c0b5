"""Waiting for conditions in tests, never for time."""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENCE = 3.0
"""How much longer than on an idle machine a test waits: others run beside it."""


def wait_until(condition: Callable[[], object], seconds: float, what: str) -> None:
    """Return once `condition()` is true; fail the test long after the `seconds` it may take.

    What takes long is looked at less often: looking takes processor time from what is waited for.
    """
    began = time.monotonic()
    while not condition():
        waited = time.monotonic() - began
        assert waited < PATIENCE * seconds, f"waited {PATIENCE * seconds} s in vain: {what}"
        time.sleep(min(max(waited / 20, 0.01), 0.1))
