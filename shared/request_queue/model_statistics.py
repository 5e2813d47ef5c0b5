"""The costs of each model version's requests: counted by publish.lua, read by any process.

The hash `stats` has one field per batch size, named by its rows: what has been added up over all
passes of this size, as little-endian doubles in the order of `Totals`. So a publish reads and
writes one field, whatever it counts. Beside them `failed` and `failed_seconds` count the requests
that an instance answered with an error. Those that ended otherwise are in the hash `counts`.
`left_<why>` count the batches that left the queue, by why they did: claim.lua adds to them.
`latency_<n>` count the requests in `Totals` by how long they took from push to publish, the n-th of
LATENCY_BOUNDS.
The fields of `Hits` are about the response cache, whose hits are in no batch.

The words are Triton's (statistics extension). An execution is what an answer's `timings` call its
batch: a pass that raised is none, and one that memory asked to run in pieces is one, of all its
rows. Each of its requests is charged the whole duration of each phase. What nobody was waiting for
any more when it was published, and what was answered before, is not counted.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any, NamedTuple

from redis import Redis

from shared.model_spec import ModelSpec
from shared.request_queue.claimed import Claimed
from shared.request_queue.keys import QueueKeys
from shared.wire.client import asking

REASONS = ("full", "preferred", "delay", "shape", "greedy", "retry")
"""Why a batch left the queue, see docs/queue.md."""
ENDED_UNANSWERED = (b"expired", b"cancelled", b"rejected", b"dead")
"""The fields of `counts` that are failures."""
COUNTED_ENDS = (*(name.decode() for name in ENDED_UNANSWERED), "full", "retried")
"""All fields of `counts`: `full` were refused by a full queue, `retried` put back after a crash."""
LATENCY_BOUNDS = (
    0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15,
    0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
)  # fmt: skip
"""Seconds from push to publish, by which answered requests are counted; what took longer is behind.

The counts in Redis go by their places: others than these begin with other fields.
"""
_FAILED = 255
"""In place of a latency: the request was not answered."""
_PASS = struct.Struct("<8d")
_TOTALS = struct.Struct("<12d")


class Hits(NamedTuple):
    """The cache's share of a version's requests, as `_cache.lua` counts it.

    `hit_seconds` is how long they had waited for the answer to another that asked the same.
    """

    hits: int = 0
    misses: int = 0
    hit_seconds: float = 0.0
    hit_lookup_seconds: float = 0.0
    miss_lookup_seconds: float = 0.0

    @classmethod
    def of(cls, stats: dict[bytes, bytes]) -> Hits:
        """Read them from the hash `stats`."""
        return cls(
            *(type(zero)(stats.get(name.encode(), zero)) for name, zero in cls()._asdict().items())
        )


class Pass(NamedTuple):
    """One forward pass that succeeded: its requests, their rows, and how long each phase took.

    Input is decoding (of the whole batch that was claimed) and stacking, output splitting and
    encoding.
    """

    claimed: list[Claimed]
    rows: int
    compute_input_seconds: float
    compute_infer_seconds: float
    compute_output_seconds: float


class Totals(NamedTuple):
    """The sums over all passes of one size; `last_inference` is the latest claim (s).

    Request seconds run from push to publish. The first three phases are added once per request, the
    last three once per execution.
    """

    execution_count: float = 0.0
    request_count: float = 0.0
    row_count: float = 0.0
    last_inference: float = 0.0
    request_seconds: float = 0.0
    queue_seconds: float = 0.0
    request_input_seconds: float = 0.0
    request_infer_seconds: float = 0.0
    request_output_seconds: float = 0.0
    input_seconds: float = 0.0
    infer_seconds: float = 0.0
    output_seconds: float = 0.0


def encode_costs(claimed: list[Claimed], passes: list[Pass], seconds: float) -> tuple[bytes, bytes]:
    """Return the costs, for publish.lua, of a batch that took `seconds` from claim to answers.

    The first part are the passes, eight doubles each, behind them the requests that failed as a
    pass of -1 rows. The second are columns over all requests: number of the pass, rows, seconds in
    the queue, for the rare request that was closed before: it is taken off its pass. The last one
    is the place of each one's latency in LATENCY_BOUNDS.
    """
    count = len(claimed)
    if len(passes) == 1 and len(passes[0].claimed) == count:  # fast: nearly always
        numbers = [1] * count
    else:
        passes, numbers = _with_failures(claimed, passes)
    rows = [item.rows for item in claimed]
    queue_seconds = [item.queue_seconds for item in claimed]
    latencies = [bisect_left(LATENCY_BOUNDS, waited + seconds) for waited in queue_seconds]
    if passes and passes[-1].rows < 0:
        failed = len(passes)
        latencies = [
            _FAILED if number == failed else place
            for number, place in zip(numbers, latencies, strict=True)
        ]
    requests = struct.pack(f"<{count}H{count}I{count}d", *numbers, *rows, *queue_seconds)
    return b"".join([_record(each, seconds) for each in passes]), requests + bytes(latencies)


def _with_failures(claimed: list[Claimed], passes: list[Pass]) -> tuple[list[Pass], list[int]]:
    """Return the passes, the requests in none of them as one more, and the number of each's."""
    number_of = {item.id: number for number, each in enumerate(passes, 1) for item in each.claimed}
    failed = [item for item in claimed if item.id not in number_of]
    numbers = [number_of.get(item.id, len(passes) + 1) for item in claimed]
    return [*passes, Pass(failed, -1, 0.0, 0.0, 0.0)] if failed else passes, numbers


def _record(one: Pass, seconds: float) -> bytes:
    claimed, rows, *phases = one
    queue_seconds = sum([item.queue_seconds for item in claimed])
    return _PASS.pack(rows, len(claimed), queue_seconds, claimed[0].claimed_at, seconds, *phases)


class ModelCosts(NamedTuple):
    """All that is counted of one model version: its passes by their rows, and the rest.

    `ended` are the requests that were not answered, by why, and what was `retried`; `latencies`
    those that were, by the place of their latency in LATENCY_BOUNDS.
    """

    by_size: dict[int, Totals]
    cache: Hits
    failed_count: int
    failed_seconds: float
    left: dict[str, int]
    ended: dict[str, int]
    latencies: tuple[int, ...]

    @classmethod
    def of(cls, stats: dict[bytes, bytes], counts: dict[bytes, bytes]) -> ModelCosts:
        """Read them from the hashes of these names."""
        unanswered = sum(int(counts.get(name, 0)) for name in ENDED_UNANSWERED)
        failed = int(stats.get(b"failed", 0))
        return cls(
            _by_size(stats),
            Hits.of(stats),
            failed + unanswered,
            float(stats.get(b"failed_seconds", 0)),
            {why: int(stats.get(b"left_" + why.encode(), 0)) for why in REASONS},
            {"failed": failed} | {name: int(counts.get(name.encode(), 0)) for name in COUNTED_ENDS},
            tuple(
                int(stats.get(b"latency_%d" % place, 0)) for place in range(len(LATENCY_BOUNDS) + 1)
            ),
        )

    @property
    def total(self) -> Totals:
        """Return the sums over all sizes; its `last_inference` is the latest."""
        sizes = self.by_size.values()
        summed = Totals(*(sum(column) for column in zip(Totals(), *sizes, strict=True)))
        return summed._replace(
            last_inference=max((each.last_inference for each in sizes), default=0.0)
        )


class Outcomes(NamedTuple):
    """The requests that a content answered, and those that it failed by itself or died under."""

    answered: int
    failed: int


def read_outcomes(client: Redis, prefix: str, model_keys: Sequence[str]) -> list[Outcomes]:
    """Return the outcomes of each `ModelSpec.key` so far; raises RedisUnavailable."""
    with client.pipeline(transaction=False) as opened:
        pipeline: Any = opened
        for key in model_keys:
            keys = QueueKeys(prefix, key)
            pipeline.hgetall(keys.stats).hget(keys.counts, "dead")
        found = asking(pipeline.execute)
    return [
        Outcomes(
            int(sum(totals.request_count for totals in _by_size(stats).values())),
            int(stats.get(b"failed", 0)) + int(dead or 0),
        )
        for stats, dead in zip(found[::2], found[1::2], strict=True)
    ]


def _by_size(stats: dict[bytes, bytes]) -> dict[int, Totals]:
    return {int(k): Totals(*_TOTALS.unpack(v)) for k, v in stats.items() if k.isdigit()}


def read_costs(client: Redis, prefix: str, specs: Sequence[ModelSpec]) -> list[ModelCosts]:
    """Return the costs of each version, zeros for one never asked; raises RedisUnavailable."""
    with client.pipeline(transaction=False) as opened:
        pipeline: Any = opened
        for spec in specs:
            keys = QueueKeys(prefix, spec.key)
            pipeline.hgetall(keys.stats).hgetall(keys.counts)
        found = asking(pipeline.execute)
    return [
        ModelCosts.of(stats, counts) for stats, counts in zip(found[::2], found[1::2], strict=True)
    ]
