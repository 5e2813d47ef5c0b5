"""Tells of a Redis that fails: once for each cause, and loudly where waiting does not help."""

from __future__ import annotations

import time
from collections.abc import Callable
from logging import Logger

from redis.exceptions import AuthenticationError, RedisError, ResponseError

from shared.errors import RedisUnavailable
from shared.wire.client import without_place
from shared.wire.tls import TlsFailed

RETRY_SECONDS = 0.1
"""The time until a Redis that failed is tried again."""
LASTING_SECONDS = 5.0
"""The same for a failure that no time ends by itself."""
PASSING = frozenset(
    {
        "BUSY", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "MISCONF", "NOREPLICAS", "NOSCRIPT", "OOM",
        "READONLY", "TRYAGAIN", "UNBLOCKED",
    }
)  # fmt: skip
"""Codes of error replies for states that Redis leaves again, or that a new connection mends."""


def lasts(error: Exception) -> bool:
    """Tell whether a failure stays until somebody mends something: Redis answers, and refuses.

    So it is with an unknown command, an error in a script, a missing permission, a wrong password,
    a certificate that is not trusted.
    """
    if isinstance(error, RedisUnavailable):
        cause = error.__cause__
        return isinstance(cause, RedisError) and lasts(cause)
    if isinstance(error, AuthenticationError | TlsFailed):
        return True
    return isinstance(error, ResponseError) and _code(error) not in PASSING


def _code(error: ResponseError) -> str:
    """Return the code of an error reply; redis-py takes it off the text."""
    taken_off = getattr(error, "status_code", None)
    text = without_place(f"{taken_off} {error}" if taken_off else str(error))
    return text.partition(" ")[0]


def rest(seconds: float, stop: Callable[[], bool]) -> None:
    """Wait before the next try: for so long, or shortly once `stop` returns true."""
    until = time.monotonic() + seconds
    while True:
        time.sleep(RETRY_SECONDS)
        if time.monotonic() >= until or stop():
            return


class Outage:
    """The failures of one user of Redis since the last success; for one thread."""

    def __init__(self, log: Logger) -> None:
        """Write into `log`."""
        self._log = log
        self._told: set[str] = set()

    def note(self, error: Exception, goes_on: str) -> float:
        """Tell of a failure unless it was told before; return the seconds until the next try.

        `goes_on` says what happens meanwhile.
        """
        cause = str((isinstance(error, RedisUnavailable) and error.__cause__) or error)
        pause = LASTING_SECONDS if lasts(error) else RETRY_SECONDS
        if cause not in self._told:
            self._told.add(cause)
            if lasts(error):
                self._log.error(
                    "Redis refuses what is asked, and waiting will not help: %s; %s",
                    cause.rstrip("."), goes_on,
                )  # fmt: skip
            else:
                self._log.warning("Redis fails, %s: %s", goes_on, cause)
        return pause

    def end(self) -> None:
        """Note a success."""
        if self._told:  # fast: an instance says so for every batch
            self._told.clear()
            self._log.info("Redis is back")
