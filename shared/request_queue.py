"""Both ends of every hop a request takes through Redis; the keys stand in `queue_keys.py`."""

from __future__ import annotations

import itertools
import logging
import os
import socket
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from redis import Redis
from redis.exceptions import RedisError

from shared.claims import Answers, Batching, Claimed
from shared.courier import Courier
from shared.messages import InferRequest, InferResult
from shared.parcels import Parcel
from shared.queue_commands import (
    CacheLimits,
    InstanceEnd,
    Limits,
    as_push,
    cancel_command,
    claim_command,
    publish_command,
    push_command,
    recover_command,
    rejected_after,
)
from shared.queue_keys import QueueKeys
from shared.redis_connection import LONGEST_BLOCK_SECONDS, Wire, open_wire

log = logging.getLogger(__name__)

SHORT_WAIT_SECONDS = 0.002
"""A wait of this length is slept through, which is more exact than waiting for the bell."""


class RequestQueue:
    """The API's end: push a request, wait for its answer. For use by many threads."""

    def __init__(self, client: Redis, keys: QueueKeys, limits: Limits) -> None:
        """Bind to one model version's keys; opens nothing before the first push."""
        self._keys = keys
        self._limits = limits
        self._process = os.urandom(4).hex()
        self._salt = os.urandom(6).hex()
        self._numbers = itertools.count()
        self._courier = Courier(
            partial(open_wire, client),
            partial(push_command, keys, limits),
            partial(cancel_command, keys),
            keys.answered + self._process,
            keys.result,
        )

    @property
    def waiting(self) -> int:
        """How many requests this process has under way."""
        return self._courier.waiting

    def new_id(self) -> str:
        """Return an id whose answer this process will be told of."""
        return f"{self._process}{self._salt}{next(self._numbers):012x}"

    def push(self, request: InferRequest, client: socket.socket | None = None) -> Waiting:
        """Send the request to Redis, together with others of this process (stop 2).

        Whether it was accepted is said by `wait`. When the peer of `client` hangs up, the request
        is taken back. Next stop: `worker.loop.run`, which claims it.
        """
        return self._carry(request, client=client)

    def hold(self, request: InferRequest, then: Callable[[], None]) -> Waiting:
        """Send the request at the next `release`; `then` is called as `Parcel` says."""
        return self._carry(request, then=then)

    def release(self) -> None:
        """Send what is held, in one write."""
        self._courier.release()

    def _carry(
        self,
        request: InferRequest,
        client: socket.socket | None = None,
        then: Callable[[], None] | None = None,
    ) -> Waiting:
        now = time.monotonic()
        push = as_push(request, self._keys, self._limits, in_pieces=True)
        parcel = Parcel(push, now + request.timeout_seconds, client, then)
        if policy := self._limits.policy(request.priority):
            parcel.queue_deadline = now + rejected_after(policy, request)
        self._courier.carry(parcel, held=then is not None)
        return Waiting(parcel, self._courier)


class Waiting:
    """A request that is not answered yet."""

    __slots__ = ("_courier", "parcel")

    def __init__(self, parcel: Parcel, courier: Courier) -> None:
        """Wait for what the courier carries."""
        self.parcel = parcel
        self._courier = courier

    def take_back(self) -> None:
        """Want the answer no more: `wait` raises ClientLeft, unless the answer was there before.

        What is not being computed yet leaves the queue. For any thread, as often as it likes.
        """
        self._courier.take_back(self.parcel)

    def wait(self) -> InferResult:
        """Block until the answer is there (stop 8) and return it, or raise the error it carries.

        Raises QueueFull or RedisUnavailable when the request was not accepted, RequestExpired soon
        after the deadline. An accepted request survives a Redis that goes away: the courier pushes
        it again, under the same id, until the deadline.
        """
        parcel = self.parcel
        parcel.done.wait()
        if parcel.error is not None:
            raise parcel.error
        assert parcel.result is not None, "a done parcel has a result or an error"
        result = InferResult.decode(parcel.result)
        if result.error is not None:
            raise result.error
        return result


class WorkQueue:
    """An instance's end: claim a batch, publish its answers. One thread, one connection."""

    def __init__(
        self,
        wire: Wire,
        keys: QueueKeys,
        instance: str,
        *,
        result_ttl_seconds: float,
        batching: Batching = Batching(),  # noqa: B008, it is frozen
        cache: CacheLimits = CacheLimits(),  # noqa: B008
    ) -> None:
        """Claim as `instance`, whose in-flight list a supervisor recovers when it dies."""
        self._wire = wire
        self._waker = wire.beside()
        self._keys = keys
        self._end = InstanceEnd(keys, instance, result_ttl_seconds, batching, cache)
        self._stale = keys.answers if keys.cache else []

    def claim(self, max_rows: int, max_delay_seconds: float) -> list[Claimed]:
        """Take one batch, waiting up to half a second for work (stop 3); empty when there is none.

        The batch is recorded as this instance's in-flight work in the same step. Raises RedisError.
        Next stop: `worker.batch.answer_batch`.
        """
        if self._stale:  # the model's file may have been another one when these were filled
            self._wire.send(("UNLINK", *self._stale))
            self._wire.reply()
            self._stale = []
        self._wire.send(self._claim(max_rows, max_delay_seconds))
        batch, wait_seconds = self._read_batch()
        return batch or self._wait_and_claim(max_rows, max_delay_seconds, wait_seconds)

    def publish_and_claim(
        self, claimed: list[Claimed], answers: Answers, max_rows: int, max_delay_seconds: float
    ) -> list[Claimed]:
        """Publish a batch and take the next one, in one write: as `publish`, then `claim`.

        The bell is waited for at once: a claim that leaves work behind, and every push, rings it.
        """
        bell = ("BLPOP", self._keys.bell, LONGEST_BLOCK_SECONDS)
        claim = self._claim(max_rows, max_delay_seconds)
        self._wire.send(self._publish(claimed, answers, len(claimed)), bell, claim)
        self._wire.reply()
        self._wire.reply()
        batch, wait_seconds = self._read_batch()
        if batch or wait_seconds < 0:
            return batch
        return self._wait_and_claim(max_rows, max_delay_seconds, wait_seconds)

    def publish(self, claimed: list[Claimed], answers: Answers, *, drop: bool = True) -> int:
        """Hand out a batch's answers, drop it from the in-flight work and count it (stop 7).

        All in one step. Returns how many were the first answer to their request; only these are
        counted. After a RedisError call it again without `drop`, since the first call may have been
        done and followed by a claim; then `put_back` what is left.
        Next stop: `Waiting.wait`.
        """
        self._wire.send(self._publish(claimed, answers, len(claimed) if drop else 0))
        first: int = self._wire.reply()
        return first

    def probe(self) -> None:
        """Read something small; raises RedisError when Redis does not answer that either."""
        self._wire.send(("EXISTS", self._keys.inflight + self._end.instance))
        self._wire.reply()

    def put_back(self) -> tuple[int, int]:
        """Return what this instance holds to the queue, after a lost connection."""
        return _recover(self._wire, self._end, crashed=False)

    def _claim(self, max_rows: int, max_delay_seconds: float) -> tuple[Any, ...]:
        return claim_command(self._end, max_rows, max_delay_seconds)

    def _publish(
        self, claimed: list[Claimed], answers: Answers, drop_count: int
    ) -> tuple[Any, ...]:
        return publish_command(self._end, claimed, answers, drop_count)

    def _wait_and_claim(
        self, max_rows: int, max_delay_seconds: float, wait_seconds: float
    ) -> list[Claimed]:
        """Block on the bell, or for as long as pending requests may still wait; then claim."""
        claim = self._claim(max_rows, max_delay_seconds)
        if 0 <= wait_seconds < SHORT_WAIT_SECONDS:
            time.sleep(wait_seconds)
            self._wire.send(claim)
            return self._read_batch()[0]
        seconds = min(wait_seconds, LONGEST_BLOCK_SECONDS)
        bell = ("BLPOP", self._keys.bell, LONGEST_BLOCK_SECONDS)
        self._wire.send(("CLIENT", "ID"), bell, claim)
        client_id = self._wire.reply()
        if seconds >= 0 and not self._wire.has_reply(seconds):
            self._wake(client_id)
        self._wire.reply()
        return self._read_batch()[0]

    def _wake(self, client_id: int) -> None:
        """End our own wait for the bell: by itself an idle Redis ends it up to 0.1 s too late."""
        try:
            self._waker.send(("CLIENT", "UNBLOCK", client_id))
            self._waker.reply()
        except RedisError as error:
            log.debug("the wait ends by itself, Redis does not end it: %s", error)

    def _read_batch(self) -> tuple[list[Claimed], float]:
        now, wait, *parts = self._wire.reply()
        batch = [
            Claimed.of(ticket, body, now / 1e6)
            for ticket, body in zip(parts[::2], parts[1::2], strict=True)
        ]
        return batch, wait / 1e6


def recover(
    wire: Wire, keys: QueueKeys, instance: str, *, crashed: bool, result_ttl_seconds: float
) -> tuple[int, int]:
    """Put an instance's in-flight work back to the head of the queue.

    A crash counts as an attempt: after MAX_ATTEMPTS a request is answered with ModelCrashed, and
    kept among the dead.
    Returns how many requests went back and how many were given up. Raises RedisError.
    """
    return _recover(wire, InstanceEnd(keys, instance, result_ttl_seconds), crashed=crashed)


def _recover(wire: Wire, end: InstanceEnd, *, crashed: bool) -> tuple[int, int]:
    wire.send(recover_command(end, crashed=crashed))
    back, given_up = wire.reply()
    return back, given_up
