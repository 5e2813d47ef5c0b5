"""The `dynamic_batching` block of a `config.pbtxt`."""

from __future__ import annotations

from typing import Any

MAX_PRIORITY_LEVELS = 100


def read_priorities(batching: Any) -> tuple[int, int]:
    """Return the levels of priority and the default one, which Triton wants if there are any."""
    levels, default = batching.priority_levels, batching.default_priority_level
    if levels > MAX_PRIORITY_LEVELS:
        raise ValueError(f"priority_levels {levels} must not exceed {MAX_PRIORITY_LEVELS}")
    if levels and not 1 <= default <= levels:
        raise ValueError(f"default_priority_level {default} must be from 1 to {levels}")
    return levels, default if levels else 1
