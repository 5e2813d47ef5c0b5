"""The Redis keys of what versions are asked and answer; `ferry` is FERRY_KEY_PREFIX.

    key                                   type  holds                                    expires
    ferry:{m/v}:drift:<digest>:<hour>     hash  `rows`, and <signal>:<bin> -> rows       8 days
    ferry:{m/v}:drift:<digest>:latest     list  the same of the latest rows, in blocks   2 days

The digest is the reference's, hours are counted since 1970. A hash has at most as many fields as
the reference has bins: about 120 of a classifier of pictures, never more than 1,000 or so. There
are 11 blocks at most. Both expire so long after the last row.
"""

from __future__ import annotations


class DriftKeys:
    """The keys' names under one prefix."""

    def __init__(self, prefix: str) -> None:
        """Begin every name with `prefix`."""
        self._prefix = prefix

    def hour(self, model_key: str, digest: str, hour: int) -> str:
        """Return the key of an hour's counts."""
        return f"{self._prefix}:{{{model_key}}}:drift:{digest}:{hour}"

    def latest(self, model_key: str, digest: str) -> str:
        """Return the key of the latest rows' counts."""
        return f"{self._prefix}:{{{model_key}}}:drift:{digest}:latest"
