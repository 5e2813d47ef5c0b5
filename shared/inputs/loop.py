"""Whether a process has an event loop that long work would hold up: under gevent only."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

LOOP_THREADS = 2
"""Real threads beside an event loop that work for it."""


def in_event_loop() -> bool:
    """Tell whether one thread, this one, answers everybody."""
    patched = sys.modules.get("gevent.monkey")
    return patched is not None and bool(patched.is_module_patched("socket"))


def beside_loop(work: Callable[..., Any], *arguments: Any) -> Any:
    """Have a real thread do what lets go of Python's lock meanwhile; returns its result."""
    from gevent import get_hub  # noqa: PLC0415  none but the API's processes have it

    return get_hub().threadpool.apply(work, arguments)
