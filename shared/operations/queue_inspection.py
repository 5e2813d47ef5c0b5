"""Looks into the queues of all model versions; changes nothing."""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import Any, NamedTuple

from redis import Redis

from shared.registry.registry import Registry
from shared.request_queue.keys import QueueKeys
from shared.ticket import ID_BYTES, TICKET, TICKET_VERSION

COUNTED = ("expired", "cancelled", "rejected", "dead")


class LevelState(NamedTuple):
    """One level of a version; `in_flight` counts the requests that each instance has claimed.

    `highest_attempts` is how many crashes one of its requests, waiting or in flight, has been in.
    """

    level: int
    depth: int
    bytes: int
    oldest_seconds: float
    highest_attempts: int
    in_flight: dict[str, int]


class QueueState(NamedTuple):
    """One model version; `counts` is since Redis was filled, by the names in COUNTED."""

    model: str
    version: str
    levels: list[LevelState]
    counts: dict[str, int]


class Ticket(NamedTuple):
    """One ticket as it stands on a list."""

    id: str
    attempts: int
    level: int
    enqueued: float
    body_bytes: int

    @classmethod
    def read(cls, raw: bytes) -> Ticket:
        """Take a ticket apart; when one of another version was pushed is not known."""
        version, attempts, level, _, _, enqueued, *_ = TICKET.unpack_from(raw)
        if version != TICKET_VERSION:
            enqueued = math.inf
        body_bytes = int.from_bytes(raw[-ID_BYTES - 4 : -ID_BYTES], "little")
        return cls(raw[-ID_BYTES:].decode(), attempts, level, enqueued, body_bytes)


def inspect_queues(client: Redis, prefix: str) -> list[QueueState]:
    """Return every version that is registered or that something waits for; raises RedisError.

    Each is read in one step, so that nothing is seen twice or not at all on its way.
    """
    levels = {
        spec.key: set(range(1, spec.levels + 1))
        for versions in Registry(client, prefix).snapshot().models.values()
        for spec in versions.values()
    }
    instances: dict[str, set[str]] = {}
    for model_key, kind, rest in lists(client, prefix):
        if kind in ("queue", "inflight"):
            found = levels.setdefault(model_key, set())
            if kind == "queue":
                found.add(int(rest))
            else:
                instances.setdefault(model_key, set()).add(rest)
    return [
        _inspect(client, prefix, key, sorted(levels[key]), sorted(instances.get(key, ())))
        for key in sorted(levels)
    ]


def lists(client: Redis, prefix: str) -> list[tuple[str, str, str]]:
    """Return the lists of all versions: version, kind, and the level, instance or process.

    Walks all keys, but asks Redis for the lists alone: there are few beside bodies and results.
    """
    name = re.compile(rf"{re.escape(prefix)}:\{{([^}}]+)\}}:(\w+):?(.*)")
    glob = re.sub(r"([\\*?\[\]])", r"\\\1", prefix)
    keys = client.scan_iter(match=f"{glob}:{{*", count=1000, _type="list")
    matches = [name.fullmatch(key.decode()) for key in keys]
    return [(match[1], match[2], match[3]) for match in matches if match]


def _inspect(
    client: Redis, prefix: str, model_key: str, levels: list[int], instances: list[str]
) -> QueueState:
    keys = QueueKeys(prefix, model_key)
    with client.pipeline(transaction=True) as opened:
        pipeline: Any = opened
        for key in [f"{keys.queue}{level}" for level in levels]:
            pipeline.lrange(key, 0, -1)
        for key in [keys.inflight + instance for instance in instances]:
            pipeline.lrange(key, 0, -1)
        pipeline.hgetall(keys.counts).time()
        *found, counts, (seconds, microseconds) = pipeline.execute()
    now = seconds + microseconds / 1e6
    tickets = [[Ticket.read(raw) for raw in each] for each in found]
    held = dict(zip(instances, tickets[len(levels) :], strict=True))
    # A level may be empty on its queue and in flight all the same.
    every_level = sorted({*levels, *(each.level for some in held.values() for each in some)})
    queued = dict(zip(levels, tickets, strict=False))
    model, _, version = model_key.partition("/")
    return QueueState(
        model,
        version,
        [_level(level, queued.get(level, []), held, now) for level in every_level],
        {name: int(counts.get(name.encode(), 0)) for name in COUNTED},
    )


def _level(
    level: int, queued: list[Ticket], held: dict[str, list[Ticket]], now: float
) -> LevelState:
    running = {name: [t for t in tickets if t.level == level] for name, tickets in held.items()}
    attempts = [ticket.attempts for tickets in (queued, *running.values()) for ticket in tickets]
    oldest = min((ticket.enqueued for ticket in queued), default=now)
    in_flight = Counter({name: len(tickets) for name, tickets in running.items() if tickets})
    return LevelState(
        level,
        len(queued),
        sum(ticket.body_bytes for ticket in queued),
        max(0.0, now - oldest),
        max(attempts, default=0),
        dict(in_flight),
    )
