"""A queue whose requests are as old as a test says, claimed from without waiting."""

from __future__ import annotations

from itertools import count
from typing import Any, NamedTuple

from fake_backend import answered, fake_spec
from redis import Redis

from api.infer.triton_statistics import model_statistics
from shared.messages import InferRequest, InferResult
from shared.model_spec import ModelSpec
from shared.request_queue.claimed import Claimed
from shared.request_queue.commands import as_push, cancel_command, collect_command, push_command
from shared.request_queue.keys import QueueKeys
from shared.request_queue.limits import Batching, Limits
from shared.request_queue.recovery import recover
from shared.request_queue.worker_end import WorkQueue
from shared.settings import Settings
from shared.ticket import ASYNCHRONOUS, ID_BYTES, IDEMPOTENT, TICKET
from shared.wire.wire import open_wire

PROCESS = "beefbeef"
"""The API process that waits for the answers of `Asked` requests, unless they are asynchronous."""


class Asked(NamedTuple):
    """One request: its one-letter name, and how many seconds ago it was pushed.

    `shape` stands for its signature, `timeout` is the client's v2 `timeout` in seconds.
    """

    name: str
    rows: int = 1
    age: float = 0.0
    level: int = 1
    shape: str = "a"
    timeout: float = 0.0
    deadline: float = 1000.0
    asynchronous: bool = False
    idempotent: bool = False
    owner: str = ""

    @property
    def id(self) -> str:
        """Return an id with the name in it."""
        process = ASYNCHRONOUS if self.asynchronous else IDEMPOTENT if self.idempotent else PROCESS
        return f"{process}{ord(self.name):024x}"


class AgedQueue:
    """The queue of a model with these fields in its spec, and two instances that claim from it."""

    def __init__(self, settings: Settings, redis: Redis, **fields: Any) -> None:
        self.spec: ModelSpec = fake_spec().model_copy(update={"max_batch_size": 8} | fields)
        self.redis = redis
        self.prefix = settings.key_prefix
        self.keys = QueueKeys(settings.key_prefix, self.spec.key, self.spec.levels)
        self.limits = Limits.of(self.spec, settings)
        self.wire = open_wire(redis)
        self.ends = [self._end(f"i{number}") for number in (0, 1)]
        self._numbers = count()

    def _end(self, instance: str) -> WorkQueue:
        batching = Batching.of(self.spec)
        return WorkQueue(self.wire, self.keys, instance, result_ttl_seconds=5.0, batching=batching)

    def push(self, *asked: Asked) -> list[str]:
        """Push requests and put back the clock of each; return what push.lua says."""
        return [self._push(each) for each in asked]

    def _push(self, asked: Asked) -> str:
        request = InferRequest(
            asked.id, asked.rows, (), (), asked.deadline, asked.shape.encode() * 8, asked.level,
            queue_timeout_seconds=asked.timeout, owner=asked.owner,
        )  # fmt: skip
        keys = self.keys if asked.level <= self.spec.levels else self.keys.with_bulk
        push = as_push(request, keys, self.limits)
        self.wire.send(push_command(keys, self.limits, [push]))
        (status,) = self.wire.reply()
        if status == b"queued":
            self.pass_time(asked.age, asked.name)
        return str(status.decode())

    def pass_time(self, seconds: float, names: str = "") -> None:
        """Let time pass for what waits, or for some of it."""
        for key in self.keys.lists:
            for position, ticket in enumerate(self.redis.lrange(key, 0, -1)):
                if not names or name_of(ticket[-ID_BYTES:]) in names:
                    self.redis.lset(key, position, _older(ticket, seconds))

    def claim(self, end: int = 0, max_rows: int = 0) -> list[Claimed] | float:
        """Claim once; return the batch, or for how long to wait (below 0: nothing waits)."""
        rows = max_rows or self.spec.batch_rows
        batch, wait_seconds = self.ends[end].claim_now(rows, self.spec.max_queue_delay_seconds)
        return batch or wait_seconds

    def take(self, end: int = 0, max_rows: int = 0) -> list[Claimed]:
        """Claim a batch that is ready to leave."""
        batch = self.claim(end, max_rows)
        assert isinstance(batch, list), f"it waits {batch} s"
        return batch

    def batches(self, max_rows: int = 0) -> tuple[list[str], float]:
        """Claim until nothing leaves any more: the names in each batch, and the last wait."""
        found = []
        while isinstance(batch := self.claim(max_rows=max_rows), list):
            found.append(names_of(batch))
        return found, batch

    def publish(self, batch: list[Claimed], end: int = 0) -> int:
        """Answer a batch."""
        results = [InferResult(outputs=()).encode()] * len(batch)
        return self.ends[end].publish(batch, answered(batch, results))

    def crash(self, end: int = 0) -> tuple[int, int]:
        """Have an instance's work put back after its death."""
        return recover(self.wire, self.keys, f"i{end}", crashed=True, result_ttl_seconds=5.0)

    def cancel(self, *asked: Asked) -> None:
        """Take requests back."""
        self.wire.send(cancel_command(self.keys, "cancelled", [each.id for each in asked]))
        self.wire.reply()

    def answers(self, *ids: str) -> list[tuple[str, str]]:
        """Collect as the API process does: names and error messages, in the order of telling.

        After a lost connection it asks for the `ids` that it waits for as well.
        """
        self.wire.send(collect_command(self.keys, PROCESS, list(ids)))
        found = self.wire.reply()
        results = [InferResult.decode(result) for result in found[1::2]]
        return [
            (name_of(request_id), result.error.message if result.error else "")
            for request_id, result in zip(found[::2], results, strict=True)
        ]

    def told(self, *ids: str) -> str:
        """Collect; return the names in the order in which they were told of."""
        return "".join(name for name, _ in self.answers(*ids))

    def waiting(self, level: int = 1) -> tuple[str, str]:
        """Return who stands on a level's queue, and who is delayed there."""
        lists = (f"{self.keys.queue}{level}", f"{self.keys.delayed}{level}")
        found = [self.redis.lrange(key, 0, -1) for key in lists]
        first, second = ("".join(name_of(raw[-ID_BYTES:]) for raw in each) for each in found)
        return first, second

    def reasons(self) -> dict[str, int]:
        """Return why batches left, as the statistics say."""
        found: Any = self.stats()["batches_left"]
        return {why: number for why, number in found.items() if number}

    def stats(self) -> dict[str, Any]:
        """Return the version's statistics."""
        (found,) = model_statistics(self.redis, self.prefix, [self.spec])
        return found

    def close(self) -> None:
        """Close the connection."""
        self.wire.close()


def names_of(batch: list[Claimed]) -> str:
    """Return the names in a batch."""
    return "".join(name_of(item.id) for item in batch)


def name_of(request_id: str | bytes) -> str:
    """Return the name that an id was made of."""
    return chr(int(request_id[8:], 16))


def _older(ticket: bytes, seconds: float) -> bytes:
    *first, enqueued, deadline, queue_deadline, signature, turn, size = TICKET.unpack_from(ticket)
    times = [when - seconds for when in (enqueued, deadline, queue_deadline)]
    return TICKET.pack(*first, *times, signature, turn, size) + ticket[TICKET.size :]
