"""The Redis keys of figures over time; `ferry` is FERRY_KEY_PREFIX.

    key                     type    holds                                            expires
    ferry:history:writer    string  nothing: somebody writes this second             0.9 s
    ferry:history:last      string  Moment: all counts as they were last written     a day
    ferry:history:minute    string  Moment: those at the last whole minute           a day
    ferry:history:seconds   list    HistoryPoint of each second with requests        15 minutes
    ferry:history:minutes   list    HistoryPoint of each minute with requests        a day

The newest point stands in front. The lists have 900 and 1,440 elements at most, each of at most 50
versions: 5 MB and 8 MB.
"""

from __future__ import annotations


class HistoryKeys:
    """The keys' names under one prefix."""

    def __init__(self, prefix: str) -> None:
        """Begin every name with `prefix`."""
        self.writer = f"{prefix}:history:writer"
        self.last = f"{prefix}:history:last"
        self.minute = f"{prefix}:history:minute"
        self.seconds = f"{prefix}:history:seconds"
        self.minutes = f"{prefix}:history:minutes"
