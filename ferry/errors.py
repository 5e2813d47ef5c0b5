"""Exit codes, and why a command ends before it began (a wrong setting is BadSetting)."""

from __future__ import annotations

EXIT_FAILED = 1
EXIT_BAD_USAGE = 2
EXIT_INTERRUPTED = 130


class CannotStart(Exception):
    """Something outside is in the way: a port, a lock, a server; the message says what to do."""


class NoRedis(Exception):
    """A command that looks into Redis found none that answers; the message says where it looked."""
