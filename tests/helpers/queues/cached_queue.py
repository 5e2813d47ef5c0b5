"""A model version's queue with a response cache, one script after the other."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from itertools import count
from typing import Any

import numpy as np
from redis import Redis

from shared.courier.pending import PushArguments
from shared.errors import FerryError
from shared.messages import InferResult, Tensor
from shared.request_queue.claimed import Claimed, EncodedResults
from shared.request_queue.commands import cancel_command, push_command
from shared.request_queue.keys import QueueKeys
from shared.request_queue.limits import CacheLimits, Limits
from shared.request_queue.model_statistics import Hits, Pass, encode_costs
from shared.request_queue.recovery import recover
from shared.request_queue.worker_end import WorkQueue
from shared.wire.wire import open_wire

PROCESS = "beefbeef"
LIMITS = Limits()


class CachedQueue:
    """Requests are questions, strings of one letter; equal ones have equal answers."""

    def __init__(
        self, client: Redis, prefix: str, *, levels: int = 1, limits: Limits = LIMITS,
        model_key: str = "m/1", **cache: Any,
    ) -> None:  # fmt: skip
        self.client = client
        self.keys = QueueKeys(prefix, model_key, levels, cached=True)
        self.wire = open_wire(client)
        self._limits = limits
        self._cache = CacheLimits(**cache)
        self._works: dict[str, WorkQueue] = {}
        self._numbers = count()

    def ask(
        self, question: str, *, level: int = 1, timeout: float = 1000.0, process: str = PROCESS,
        ttl_ms: int = 1_000_000, size: int = 10,
    ) -> str:  # fmt: skip
        """Push one request; returns its id."""
        push = self.new_push(question, level, timeout, process, ttl_ms, size)
        self.push([push])
        return push.id

    def new_push(
        self, question: str, level: int = 1, timeout: float = 1000.0, process: str = PROCESS,
        ttl_ms: int = 1_000_000, size: int = 10,
    ) -> PushArguments:  # fmt: skip
        digest = blake2b(question.encode(), digest_size=16).hexdigest()
        request_id = f"{process}{next(self._numbers):024x}"
        body = question.encode().ljust(size, b".")
        return PushArguments(request_id, 1, level, bytes(8), timeout, ttl_ms, body, digest=digest)

    def push(self, pushes: Iterable[PushArguments]) -> list[str]:
        """Push several in one step; returns what push.lua says of each."""
        self.wire.send(push_command(self.keys, self._limits, list(pushes)))
        return [status.decode() for status in self.wire.reply()]

    def cancel(self, *ids: str, only_waiting: bool = False) -> list[str]:
        self.wire.send(cancel_command(self.keys, "cancelled", ids, only_waiting=only_waiting))
        return [state.decode() for state in self.wire.reply()]

    def claim(self, instance: str = "i", max_rows: int = 32) -> list[Claimed]:
        """Claim what is there, without waiting for the bell."""
        work = self.work(instance)
        self.client.delete(self.keys.bell)
        return work.claim_now(max_rows, 0.0)[0]

    def publish(
        self, batch: list[Claimed], instance: str = "i", error: FerryError | None = None,
        answer: bytes = b"",
    ) -> None:  # fmt: skip
        """Answer each with its letter and `answer` behind it, as numbers, or with an error."""
        results = [
            InferResult(error=error) if error else InferResult(outputs=(output(item, answer),))
            for item in batch
        ]
        passes = [Pass(batch, len(batch), 0.0, 0.0, 0.0)] if batch and not error else []
        costs = encode_costs(batch, passes, 0.0)
        self.work(instance).publish(
            batch, EncodedResults([each.encode() for each in results], costs)
        )

    def crash(self, instance: str = "i", *, crashed: bool = True) -> tuple[int, int]:
        return recover(self.wire, self.keys, instance, crashed=crashed, result_ttl_seconds=60.0)

    def result(self, request_id: str) -> InferResult | None:
        """Return what a request was answered with, if it was."""
        found = self.client.get(self.keys.result + request_id)
        return InferResult.decode(found) if found else None

    def letter(self, request_id: str) -> str:
        """Return the question that a request's answer is for."""
        result = self.result(request_id)
        assert result is not None, "not answered"
        assert result.error is None, result.error
        return chr(int(result.outputs[0].array()[0]))

    def hits(self) -> Hits:
        return Hits.of(self.client.hgetall(self.keys.stats))

    def queued(self) -> list[str]:
        """Return the ids on the queues."""
        tickets = [self.client.lrange(queue, 0, -1) for queue in self.keys.lists]
        return [ticket[-32:].decode() for found in tickets for ticket in found]

    def work(self, instance: str) -> WorkQueue:
        if instance not in self._works:
            self._works[instance] = WorkQueue(
                self.wire, self.keys, instance, result_ttl_seconds=60.0, cache=self._cache
            )
        return self._works[instance]


def output(item: Claimed, answer: bytes) -> Tensor:
    numbers = np.frombuffer(bytes([item.body[0]]) + answer, np.uint8)
    return Tensor.of("y", numbers)
