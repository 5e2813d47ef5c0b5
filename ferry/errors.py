"""Exit codes, and the errors that end a command early; a wrong setting is a BadSetting."""

from __future__ import annotations

EXIT_FAILED = 1
EXIT_BAD_USAGE = 2
EXIT_INTERRUPTED = 130


class CannotStart(Exception):
    """Raised when a port, a lock or a server is in the way; the message says what to do."""


class NoRedis(Exception):
    """Raised when no Redis answers that could be looked into; the message says which was asked."""
