"""Why a command ends before it began; a wrong setting is shared.errors.BadSetting."""

from __future__ import annotations


class CannotStart(Exception):
    """Something outside is in the way: a port, a lock, a server; the message says what to do."""


class NoRedis(Exception):
    """A command that looks into Redis found none that answers; the message says where it looked."""
