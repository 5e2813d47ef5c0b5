"""The counts of rows by signal and bin, which every instance adds to in Redis, and all read."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from redis import Redis

from shared.datatypes import Array
from shared.drift.keys import DriftKeys
from shared.drift.reference import Reference
from shared.wire.client import asking, milliseconds
from shared.wire.scripts import script_text

LATEST_ROWS = 500
"""Read together, or few more: the newest blocks that hold so many."""
BLOCK_ROWS, BLOCK_COUNT = 50, 11
HOUR_SECONDS = 3600
MOST_HOURS = 7 * 24
HOUR_KEPT_SECONDS = (MOST_HOURS + 24) * float(HOUR_SECONDS)
LATEST_KEPT_SECONDS = 2 * 86_400.0
COUNTED_ROWS = "rows"

Counted = Mapping[str, Array]
"""By signal, how many rows fell into each bin."""


class DriftCounts:
    """Adds and reads; every method raises RedisUnavailable."""

    def __init__(self, client: Redis, prefix: str) -> None:
        """Use `client`, naming keys under `prefix`."""
        self._client = client
        self._keys = DriftKeys(prefix)

    def add(self, model_key: str, reference: Reference, rows: int, counted: Counted) -> None:
        """Add the counts of some rows to those of this hour, and to the latest."""
        pairs: list[Any] = [COUNTED_ROWS, rows]
        for name, counts in counted.items():
            for place in np.flatnonzero(counts).tolist():
                pairs += (f"{name}:{place}", int(counts[place]))
        client: Any = self._client
        hour = self._keys.hour(model_key, reference.digest, int(time.time()) // HOUR_SECONDS)
        latest = self._keys.latest(model_key, reference.digest)
        kept = milliseconds(HOUR_KEPT_SECONDS), milliseconds(LATEST_KEPT_SECONDS)
        script = script_text("drift")
        asking(lambda: client.eval(script, 2, hour, latest, *kept, BLOCK_ROWS, BLOCK_COUNT, *pairs))

    def latest(self, versions: Sequence[tuple[str, Reference]]) -> list[Counted]:
        """Return the counts of each version's latest rows, at least LATEST_ROWS if there are."""
        with self._client.pipeline(transaction=False) as opened:
            pipeline: Any = opened
            for model_key, reference in versions:
                pipeline.lrange(self._keys.latest(model_key, reference.digest), 0, -1)
            found = asking(pipeline.execute) if versions else []
        return [
            _counted(reference, _newest(map(json.loads, blocks)))
            for (_, reference), blocks in zip(versions, found, strict=True)
        ]

    def hours(self, model_key: str, reference: Reference, count: int) -> Counted:
        """Return the counts of the last `count` hours, this one among them."""
        now = int(time.time()) // HOUR_SECONDS
        with self._client.pipeline(transaction=False) as opened:
            pipeline: Any = opened
            for hour in range(now - count + 1, now + 1):
                pipeline.hgetall(self._keys.hour(model_key, reference.digest, hour))
            found = asking(pipeline.execute)
        sums = Counter[str]()
        for each in found:
            sums.update({name.decode(): int(value) for name, value in each.items()})
        return _counted(reference, sums)


def _newest(blocks: Iterable[dict[str, int]]) -> Counter[str]:
    """Return the sums of the newest blocks that hold enough rows."""
    sums = Counter[str]()
    for block in blocks:
        sums.update({name: int(count) for name, count in block.items()})
        if sums[COUNTED_ROWS] >= LATEST_ROWS:
            break
    return sums


def _counted(reference: Reference, sums: Mapping[str, int]) -> Counted:
    return {
        name: np.array([sums.get(f"{name}:{place}", 0) for place in range(len(bins.counts))])
        for name, bins in reference.signals.items()
    }
