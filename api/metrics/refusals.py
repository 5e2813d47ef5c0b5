"""Requests that an API process refused by itself: they never reached a queue, which counts its own.

`ferry_requests_rejected` are those that a queue refused; nobody is in both.
"""

from __future__ import annotations

from collections import Counter

from redis import Redis

from shared.access.counts import Counts
from shared.access.keys import AccessKeys
from shared.errors import (
    ClientLeft,
    FerryError,
    QueueFull,
    RedisUnavailable,
    RequestExpired,
    VersionRetired,
    all_errors,
)
from shared.exposition.families import Family, Figures, Filled

REFUSED_REQUESTS = Family(
    "counter",
    "ferry_requests_refused",
    "Requests that an API refused before they reached a queue, by the code of their error.",
    ("reason",),
)
REFUSAL_CODES = frozenset(
    {each.code for each in all_errors() if each.status < FerryError.status}
    | {"model_not_ready", QueueFull.code, RedisUnavailable.code, VersionRetired.code, "unsupported"}
) - {ClientLeft.code, RequestExpired.code}
"""All the label's values, each there from the start."""


class Refusals(Figures):
    """Counts the refusals of this process, and tells those of all."""

    families = (REFUSED_REQUESTS,)

    def __init__(self, client: Redis, prefix: str) -> None:
        """Count into `client`; opens nothing before the first refusal, or scrape."""
        self._counts = Counts(client, AccessKeys(prefix).refused)

    def note(self, error: Exception) -> None:
        """Count a request that is answered with an error, unless its queue has counted it."""
        if isinstance(error, FerryError) and error.code in REFUSAL_CODES and not error.is_of_queue:
            self._counts.add(error.code)

    def counted(self) -> Counter[str]:
        """Return the counts of all processes by code; raises RedisUnavailable."""
        return Counter({code: number for (code, *_), number in self._counts.all().items()})

    def fill(self, families: Filled) -> None:
        """Add the counts of all processes; raises RedisUnavailable."""
        found = self.counted()
        for code in sorted(REFUSAL_CODES):
            families[REFUSED_REQUESTS.name].add_metric([code], float(found[code]))
