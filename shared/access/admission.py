"""How much a key may ask for: its rate, its requests under way; and how much it asked."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import redis

from shared.access.api_key import ApiKey
from shared.access.counts import Counts
from shared.access.keys import AccessKeys
from shared.errors import RateLimited, RedisUnavailable
from shared.wire.client import asking
from shared.wire.scripts import script_text

log = logging.getLogger(__name__)

LEASE_MARGIN_SECONDS = 60.0
"""How much longer than its deadline a request keeps its place when its process died."""


class Admission:
    """Lets requests of a key in, and counts them; for use by many threads.

    A key without rate and concurrency costs Redis nothing but its counts, twice a second.
    """

    def __init__(self, client: redis.Redis, prefix: str) -> None:
        """Use `client`; opens nothing before the first request."""
        self._client = client
        self._keys = AccessKeys(prefix)
        self._admit: Any = client.register_script(script_text("admit"))
        self._counts = Counts(client, self._keys.use)

    @contextmanager
    def place(self, key: ApiKey, seconds: float) -> Iterator[None]:
        """Have a place for one request of a key, which is over within `seconds`.

        Raises RateLimited and RedisUnavailable.
        """
        if not key.is_limited:
            self.count(key, "admitted")
            yield
            return
        request_id = os.urandom(8).hex()
        self._take(key, request_id, seconds)
        self.count(key, "admitted")
        try:
            yield
        finally:
            if key.concurrency:
                self._give_back(key, request_id)

    def count(self, key: ApiKey, outcome: str) -> None:
        """Count a request of a key: `admitted`, `rate`, `concurrency` or `forbidden`."""
        self._counts.add(key.id, outcome)

    def counts(self) -> dict[tuple[str, str], int]:
        """Return the requests of all processes by key id and outcome; raises RedisUnavailable."""
        return {(id_, outcome): number for (id_, outcome), number in self._counts.all().items()}

    def _take(self, key: ApiKey, request_id: str, seconds: float) -> None:
        count, period_seconds = key.per_period
        lease_ms = math.ceil(1000 * (seconds + LEASE_MARGIN_SECONDS))
        names = [self._keys.rate(key.id), self._keys.active(key.id)]
        arguments = [count, 1000 * period_seconds, key.concurrency, request_id, lease_ms]
        said, wait_ms = asking(lambda: self._admit(names, arguments))
        what = said.decode()
        if what == "ok":
            return
        self.count(key, what)
        limit = f"rate of {key.rate}" if what == "rate" else f"{key.concurrency} requests under way"
        error = RateLimited(f"key {key.name!r} has used up its {limit}")
        error.retry_after_seconds = max(1, math.ceil(int(wait_ms) / 1000))
        raise error

    def _give_back(self, key: ApiKey, request_id: str) -> None:
        try:
            asking(lambda: self._client.zrem(self._keys.active(key.id), request_id))
        except RedisUnavailable as error:
            log.warning("a place of key %s is kept until its lease ends: %s", key.id, error)
