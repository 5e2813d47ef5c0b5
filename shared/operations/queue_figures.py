"""The state of many queues at one moment, in one round trip: for /metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from redis import Redis

from shared.model_spec import ModelSpec
from shared.operations.queue_inspection import Ticket
from shared.request_queue.keys import QueueKeys
from shared.wire.client import asking


class QueueFigures(NamedTuple):
    """One version's queue; `dead_count` are the requests that are kept after they were given up.

    `kept_bytes` are those of FERRY_MAX_KEPT_BYTES.
    """

    depth: int
    bytes: int
    oldest_seconds: float
    in_flight: int
    dead_count: int
    kept_bytes: int


def queue_figures(
    client: Redis, prefix: str, specs: Sequence[ModelSpec], instances: Mapping[str, Sequence[str]]
) -> list[QueueFigures]:
    """Return the figures of each version's queue; raises RedisUnavailable.

    `instances` are the ids of those that may hold requests, by `ModelSpec.key`. fast: no queue is
    walked, its oldest ticket is at the head of one of its lists.
    """
    with client.pipeline(transaction=False) as opened:
        pipeline: Any = opened
        pipeline.time()
        for spec in specs:
            keys = QueueKeys.of(spec, prefix).with_bulk
            for name in keys.lists:
                pipeline.llen(name).lindex(name, 0)
            for instance in instances.get(spec.key, ()):
                for held in keys.held_by(instance):
                    pipeline.llen(held)
            pipeline.get(keys.bytes).llen(keys.dead).hget(keys.kept_bytes, "all")
        replies = iter(asking(pipeline.execute))
    seconds, microseconds = next(replies)
    now = seconds + microseconds / 1e6
    return [
        _figures(replies, now, len(QueueKeys.of(spec, prefix).with_bulk.lists),
                 2 * len(instances.get(spec.key, ())))
        for spec in specs
    ]  # fmt: skip


def _figures(replies: Any, now: float, lists: int, held: int) -> QueueFigures:
    """Read one version's replies, in the order in which they were asked for."""
    heads = [(next(replies), next(replies)) for _ in range(lists)]
    waiting = [Ticket.read(ticket).enqueued for _, ticket in heads if ticket]
    return QueueFigures(
        sum(length for length, _ in heads),
        in_flight=sum(next(replies) for _ in range(held)),
        bytes=int(next(replies) or 0),
        dead_count=next(replies),
        kept_bytes=int(next(replies) or 0),
        oldest_seconds=max(0.0, now - min(waiting, default=now)),
    )
