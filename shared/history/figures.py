"""All counts of all versions at one moment, and what happened between two of them."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import NamedTuple

import msgpack
from redis import Redis

from shared.model_spec import ModelSpec
from shared.operations.queue_figures import QueueFigures, queue_figures
from shared.registry.snapshot import InstanceRecord
from shared.request_queue.model_statistics import LATENCY_BOUNDS, ModelCosts, read_costs

MOST_VERSIONS = 50
"""A point has the busiest versions, no more: what is stored is bounded."""
NOT_ERRORS = ("retried",)
"""Of a version's ends, those behind which the request goes on."""


class VersionCounts(NamedTuple):
    """One version's counts since Redis was filled, and its queue as it was.

    `sizes` are batches by their rows, `left` by why they left the queue, `ended` the requests that
    were not answered, `latencies` those that were, by their place in LATENCY_BOUNDS.
    """

    requests: int
    rows: int
    batches: int
    sizes: dict[int, int]
    left: dict[str, int]
    ended: dict[str, int]
    latencies: list[int]
    depth: int
    oldest_seconds: float
    in_flight: int
    dead_count: int

    @property
    def errors(self) -> int:
        """Return the requests that were not answered."""
        return sum(count for name, count in self.ended.items() if name not in NOT_ERRORS)

    @property
    def is_busy(self) -> bool:
        """Tell whether something waits or runs."""
        return bool(self.depth or self.in_flight)


class Moment(NamedTuple):
    """All versions' counts, by `ModelSpec.key`, at a time of Redis's clock."""

    at: float
    versions: dict[str, VersionCounts]

    def encode(self) -> bytes:
        """Return it as it is stored."""
        encoded: bytes = msgpack.packb([self.at, {k: list(v) for k, v in self.versions.items()}])
        return encoded

    @classmethod
    def decode(cls, raw: bytes) -> Moment:
        """Read it as it was stored."""
        at, versions = msgpack.unpackb(raw, strict_map_key=False)
        return cls(at, {key: VersionCounts(*counts) for key, counts in versions.items()})


class Rates(NamedTuple):
    """One version between two moments: per second, latencies in seconds, its queue at the end."""

    requests: float
    rows: float
    errors: float
    p50: float
    p95: float
    p99: float
    depth: int
    oldest_seconds: float


class HistoryPoint(NamedTuple):
    """The busiest versions' rates up to a moment."""

    at: float
    versions: dict[str, Rates]

    def encode(self) -> bytes:
        """Return it as it is stored."""
        rows = {key: [round(figure, 6) for figure in rates] for key, rates in self.versions.items()}
        encoded: bytes = msgpack.packb([round(self.at, 3), rows])
        return encoded

    @classmethod
    def decode(cls, raw: bytes) -> HistoryPoint:
        """Read it as it was stored."""
        at, versions = msgpack.unpackb(raw)
        return cls(at, {key: Rates(*rates) for key, rates in versions.items()})


def moment_now(
    client: Redis,
    prefix: str,
    at: float,
    specs: Sequence[ModelSpec],
    instances: Iterable[InstanceRecord],
) -> Moment:
    """Read the counts of `specs` and the queues that `instances` take from; `at` is the time.

    Raises RedisUnavailable.
    """
    held_by: dict[str, list[str]] = defaultdict(list)
    for each in instances:
        held_by[each.model_key].append(each.id)
    costs = read_costs(client, prefix, specs)
    queues = queue_figures(client, prefix, specs, held_by)
    rows = zip(specs, costs, queues, strict=True)
    return Moment(at, {spec.key: _counts(cost, queue) for spec, cost, queue in rows})


def point_between(before: Moment, after: Moment) -> HistoryPoint:
    """Return what happened between two moments, of those versions with which something did."""
    seconds = max(after.at - before.at, 1e-3)
    found = {}
    for key, now in after.versions.items():
        rates = _rates(before.versions.get(key), now, seconds)
        if rates.requests or rates.errors or now.is_busy:
            found[key] = rates
    if len(found) > MOST_VERSIONS:
        busiest = sorted(found, key=lambda key: found[key].requests, reverse=True)[:MOST_VERSIONS]
        found = {key: found[key] for key in busiest}
    return HistoryPoint(after.at, found)


def percentile(latencies: Sequence[int], share: float) -> float:
    """Return the latency that a share of the requests was not above, 0 without any.

    Within one of LATENCY_BOUNDS' steps they are taken for evenly spread.
    """
    sums = list(accumulate(latencies))
    if not sums or not sums[-1]:
        return 0.0
    wanted = share * sums[-1]
    place = bisect_left(sums, wanted)
    if place >= len(LATENCY_BOUNDS):
        return LATENCY_BOUNDS[-1]
    low = LATENCY_BOUNDS[place - 1] if place else 0.0
    below = sums[place - 1] if place else 0
    part = (wanted - below) / (latencies[place] or 1)
    return low + part * (LATENCY_BOUNDS[place] - low)


def _counts(costs: ModelCosts, queue: QueueFigures) -> VersionCounts:
    total = costs.total
    return VersionCounts(
        int(total.request_count + costs.cache.hits),
        int(total.row_count),
        int(total.execution_count),
        {rows: int(each.execution_count) for rows, each in sorted(costs.by_size.items())},
        {why: count for why, count in costs.left.items() if count},
        {why: count for why, count in costs.ended.items() if count},
        list(costs.latencies),
        queue.depth,
        round(queue.oldest_seconds, 3),
        queue.in_flight,
        queue.dead_count,
    )


def _rates(before: VersionCounts | None, now: VersionCounts, seconds: float) -> Rates:
    """Return rates; counts that fell were forgotten with their Redis and begin anew."""
    if before is None or before.requests > now.requests:
        before = now
    latencies = _minus(now.latencies, before.latencies)
    return Rates(
        (now.requests - before.requests) / seconds,
        max(0, now.rows - before.rows) / seconds,
        max(0, now.errors - before.errors) / seconds,
        percentile(latencies, 0.5),
        percentile(latencies, 0.95),
        percentile(latencies, 0.99),
        now.depth,
        now.oldest_seconds,
    )


def _minus(now: Sequence[int], before: Sequence[int]) -> list[int]:
    return [max(0, a - b) for a, b in zip(now, before, strict=True)]
