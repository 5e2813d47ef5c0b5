"""Figures of API keys: how many requests each one had admitted, and refused why."""

from __future__ import annotations

from collections import Counter

from api.access.guard import Guard
from shared.exposition.families import Family, Figures, Filled

KEY_REQUESTS = Family(
    "counter",
    "ferry_key_requests",
    "Requests of an API key: admitted, or refused for its rate, its concurrency, or what it may "
    "not do (forbidden).",
    ("key", "outcome"),
)


class KeyFigures(Figures):
    """Asks for the keys, and the counts in Redis, at each scrape; names are as many as keys."""

    families = (KEY_REQUESTS,)

    def __init__(self, guard: Guard) -> None:
        """Ask `guard`, at the first scrape."""
        self._guard = guard

    def fill(self, families: Filled) -> None:
        """Add each key's counts; where there are no keys there are none."""
        keys = self._guard.keyring.all()
        if not keys:
            return
        totals = Counter[tuple[str, str]]()
        for (key_id, outcome), count in self._guard.admission.counts().items():
            if key_id in keys:  # two of one name, of which one was revoked, are one here
                totals[keys[key_id].name, outcome] += count
        for place, count in sorted(totals.items()):
            families[KEY_REQUESTS.name].add_metric([*place], count)
