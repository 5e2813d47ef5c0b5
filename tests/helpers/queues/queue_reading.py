"""What the model knows of a request, and what stands in Redis, taken apart."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

from fake_backend import fake_spec
from redis import Redis

from api.infer.triton_statistics import model_statistics
from shared.courier.pending import PushArguments
from shared.operations.queue_inspection import COUNTED
from shared.request_queue import keys as queue_keys
from shared.request_queue.claimed import Claimed, EncodedResults
from shared.request_queue.keys import QueueKeys
from shared.request_queue.model_statistics import Pass, encode_costs
from shared.ticket import TICKET

DOCUMENTED = [
    (re.sub("<[a-z]+>", "[^:]+", name.replace("ferry:{m/v}", "model:\\{m/1\\}")), expires)
    for name, expires in re.findall(
        r"^    (ferry:\{m/v\}:\S+) .* (no|yes|no \(see \d\)|an hour|7 days)$",
        queue_keys.__doc__,
        re.MULTILINE,
    )
]


TURN_ROWS_END = 21
"""Of the terms of a push: behind them stands the API key."""
FAILING_SIZE = 41
"""The model raises on the requests whose body has it."""


@dataclass
class Asked:
    """One request as whoever asked knows it; `late` when its deadline has passed.

    When it `is_again` on the queue, because its answer was lost, an old ticket may be left.
    """

    push: PushArguments
    order: int
    closed: bool = False
    late: bool = False
    returned: bool = False
    crashes: int = 0
    is_again: bool = False
    deliveries: int = 0

    @property
    def owner(self) -> str:
        """Return the API key that it came with."""
        return self.push.terms[TURN_ROWS_END:].decode()


class Ticket(NamedTuple):
    """One ticket as it stands on a list."""

    id: str
    attempts: int
    level: int
    on_timeout: int
    rows: int
    signature: bytes
    body_bytes: int
    deadline: float
    queue_deadline: float = 0.0
    turn: float = 0.0

    @property
    def overdue(self) -> int:
        """Return what its queue policy does with it now: 0, REJECT or DELAY."""
        return 0 if self.queue_deadline else self.on_timeout

    @classmethod
    def read(cls, raw: bytes) -> Ticket:
        _, attempts, level, on_timeout, rows, _, *rest = TICKET.unpack_from(raw)
        deadline, queue_deadline, signature, turn, size = rest
        request_id = raw[TICKET.size :].decode()
        return cls(
            request_id, attempts, level, on_timeout, rows, signature, size, deadline,
            queue_deadline, turn,
        )  # fmt: skip

    @staticmethod
    def made_late(raw: bytes) -> bytes:
        *first, _, queue_deadline, signature, turn, size = TICKET.unpack_from(raw)
        times = (0.0, queue_deadline)
        return TICKET.pack(*first, *times, signature, turn, size) + raw[TICKET.size :]

    @staticmethod
    def made_overdue(raw: bytes) -> bytes:
        *first, _, signature, turn, size = TICKET.unpack_from(raw)
        return TICKET.pack(*first, 0.0, signature, turn, size) + raw[TICKET.size :]


class Seen(NamedTuple):
    """All that stands in Redis; `stored` are the ids of bodies.

    `counts` are the hash of that name and what the statistics count besides.
    """

    queued: list[Ticket]
    in_flight: list[Ticket]
    bytes: int
    bell: int
    counts: dict[str, int]
    dead: int
    stored: set[str]


def look(client: Redis, keys: QueueKeys, instances: list[str], ids: list[str]) -> Seen:
    """Read what the queues and these instances hold, and which of these requests have a body."""
    with client.pipeline() as pipeline:
        for key in [*keys.lists, *(keys.inflight + name for name in instances)]:
            pipeline.lrange(key, 0, -1)
        found = [[Ticket.read(raw) for raw in each] for each in pipeline.execute()]
        queued, in_flight = found[: len(keys.lists)], found[len(keys.lists) :]
        pipeline.get(keys.bytes).llen(keys.bell).hgetall(keys.counts).llen(keys.dead)
        for request_id in ids:
            pipeline.exists(keys.body + request_id)
        waiting_bytes, bell, counts, dead, *stored = pipeline.execute()
    return Seen(
        [ticket for each in queued for ticket in each],
        [ticket for each in in_flight for ticket in each],
        int(waiting_bytes or 0),
        bell,
        _counts(client, {key.decode(): int(number) for key, number in counts.items()}),
        dead,
        {request_id for request_id, found in zip(ids, stored, strict=True) if found},
    )


def _counts(client: Redis, counts: dict[str, int]) -> dict[str, int]:
    spec = fake_spec().model_copy(update={"name": "m"})
    (found,) = model_statistics(client, "model", [spec])
    stats = found["inference_stats"]
    besides = {
        "success": stats["success"]["count"],
        "failed": stats["fail"]["count"] - sum(counts.get(name, 0) for name in COUNTED),
        "rows": found["inference_count"],
        "executions": found["execution_count"],
    }
    return counts | {key: number for key, number in besides.items() if number}


def answers_of(held: list[Claimed]) -> EncodedResults:
    """Return the answers of an instance that ran all that do not fail in one pass."""
    good = [item for item in held if len(item.body) != FAILING_SIZE]
    passes = [Pass(good, sum(item.rows for item in good), 0.0, 0.0, 0.0)] if good else []
    return EncodedResults([b"of " + item.body for item in held], encode_costs(held, passes, 0.0))


def counted(answered: list[Asked]) -> dict[str, int]:
    """Return what `answers_of` adds to the counts when these are its first answers."""
    rows = [each.push.rows for each in answered if len(each.push.body) != FAILING_SIZE]
    failed = len(answered) - len(rows)
    return {"success": len(rows), "failed": failed, "rows": sum(rows), "executions": bool(rows)}


def lifetimes(client: Redis) -> dict[str, int]:
    """Return every key and its PTTL; of one that has just expired -2."""
    found = [key.decode() for key in client.scan_iter(count=1000)]
    with client.pipeline() as pipeline:
        for key in found:
            pipeline.pttl(key)
        return dict(zip(found, pipeline.execute(), strict=True))
