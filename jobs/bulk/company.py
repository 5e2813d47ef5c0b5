"""How large a job's requests are: as a batch, or smaller while others ask the model too.

Who asks next waits until the batch that runs is over, and the batch of a job is all of one request.
"""

from __future__ import annotations

import time

from redis import Redis

from shared.errors import RedisUnavailable
from shared.model_spec import ModelSpec
from shared.request_queue.model_statistics import Totals, read_costs

LOOK_SECONDS = 1.0
COMPANY_SECONDS = 10.0
"""So long after the last request of somebody else they are expected to ask again."""
PARTS = 2
"""Of a batch: smaller ones would cost a GPU, which computes few rows in nearly the same time."""


class Company:
    """Looks now and then whether anybody but jobs asks a model version."""

    def __init__(self, client: Redis, prefix: str, spec: ModelSpec) -> None:
        """Look at nothing yet."""
        self._client, self._prefix, self._spec = client, prefix, spec
        self._part = max(1, spec.batch_rows // PARTS)
        self._look_at = 0.0
        self._seen_at = float("-inf")
        self._others: float | None = None

    def rows(self) -> int:
        """Return how many rows the next request is to have."""
        now = time.monotonic()
        if now >= self._look_at:
            self._look_at = now + LOOK_SECONDS
            self._look(now)
        return self._part if now - self._seen_at < COMPANY_SECONDS else self._spec.batch_rows

    def _look(self, now: float) -> None:
        try:
            [costs] = read_costs(self._client, self._prefix, [self._spec])
        except RedisUnavailable:
            return  # the requests under way wait for it
        others = requests_of_others(costs.by_size, self._part)
        if self._others is not None and others > self._others:
            self._seen_at = now
        self._others = others


def requests_of_others(by_size: dict[int, Totals], part: int) -> float:
    """Return how many requests were none of a job's, nor as large: a job's travel alone."""
    return sum(
        totals.request_count - (totals.execution_count if rows >= part else 0.0)
        for rows, totals in by_size.items()
    )
