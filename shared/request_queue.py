"""Both ends of every hop a request takes through Redis.

Keys of one model version m/v share a hash tag, so each script runs in one slot and a cluster
shards by model. `ferry` is FERRY_KEY_PREFIX.

    key                             type    holds                                          expires
    ferry:{m/v}:queue               list    tickets of waiting requests, oldest first     no
    ferry:{m/v}:bell                list    at most one wake-up token, no data            no
    ferry:{m/v}:inflight:<instance> list    tickets claimed and not yet published         no (see 1)
    ferry:{m/v}:body:<id>           string  a request's tensors; exists while it is open  yes
    ferry:{m/v}:result:<id>         string  one encoded result                            yes
    ferry:{m/v}:answered:<process>  list    ids answered for one API process, no results  yes

    1: dropped when its batch is published; a dead instance's is moved by `recover`.

A ticket is 30 bytes that the scripts read without decoding anything else, then the id:

    B version   B attempts   I4 rows   d enqueued   d deadline   8 bytes signature   id

An id is 32 hex digits; the first 8 name the API process that waits for it.

Times are Redis's own clock, so no host's clock matters. A request is open while its body exists:
whoever removes the body (the first answer, expiry, a cancel) closes it, so an answer is given once
however often a request is run.
"""

from __future__ import annotations

import itertools
import os
import struct
import time
from functools import partial
from typing import Any, NamedTuple

from redis import Redis

from shared.courier import Courier
from shared.errors import ModelCrashed
from shared.messages import InferRequest, InferResult
from shared.parcels import Parcel, Push
from shared.redis_connection import LONGEST_BLOCK_SECONDS, Wire, open_wire, script_digest

TICKET = struct.Struct("<BBIdd8s")
MAX_ATTEMPTS = 3
BODY_GRACE_SECONDS = 60.0
_CRASHED = InferResult(
    error=ModelCrashed(f"the worker process died {MAX_ATTEMPTS} times while running this request")
).encode()


class Claimed(NamedTuple):
    """One request as its instance holds it: the body is not decoded yet."""

    id: str
    rows: int
    attempts: int
    queue_seconds: float
    body: bytes

    def request(self) -> InferRequest:
        """Decode the body; raises BadMessage."""
        return InferRequest.decode(self.id, self.rows, self.body)


class QueueKeys:
    """The names of one model version's keys."""

    def __init__(self, prefix: str, model_key: str) -> None:
        """Name the keys of `model_key` (`name/version`) under `prefix`."""
        tag = f"{prefix}:{{{model_key}}}"
        self.queue = f"{tag}:queue"
        self.bell = f"{tag}:bell"
        self.inflight = f"{tag}:inflight:"
        self.body = f"{tag}:body:"
        self.result = f"{tag}:result:"
        self.answered = f"{tag}:answered:"


class RequestQueue:
    """The API's end: push a request, wait for its answer. For use by many threads."""

    def __init__(self, client: Redis, keys: QueueKeys, *, max_queue_size: int) -> None:
        """Bind to one model version's keys; opens nothing before the first push."""
        self._keys = keys
        self._max_queue_size = max_queue_size
        self._process = os.urandom(4).hex()
        self._salt = os.urandom(6).hex()
        self._numbers = itertools.count()
        self._courier = Courier(
            partial(open_wire, client),
            self._push_command,
            keys.answered + self._process,
            keys.result,
        )

    def new_id(self) -> str:
        """Return an id whose answer this process will be told of."""
        return f"{self._process}{self._salt}{next(self._numbers):012x}"

    def push(self, request: InferRequest) -> Waiting:
        """Send the request to Redis, together with others of this process (stop 2).

        Whether it was accepted is said by `wait`. Next stop: `worker.loop.run`, which claims it.
        """
        timeout_seconds = request.timeout_seconds
        push = Push(
            request.id, request.rows, request.signature, timeout_seconds,
            int(1000 * (timeout_seconds + BODY_GRACE_SECONDS)), request.encode(),
        )  # fmt: skip
        parcel = Parcel(push, time.monotonic() + timeout_seconds)
        self._courier.carry(parcel)
        return Waiting(parcel)

    def _push_command(self, pushes: list[Push]) -> tuple[Any, ...]:
        keys = self._keys
        names, arguments = list[Any](), list[Any]()
        for push in pushes:
            names += (keys.body + push.id, keys.result + push.id)
            arguments += push
        return (
            "EVALSHA", script_digest("push"), 2 + len(names), keys.queue, keys.bell, *names,
            self._max_queue_size, *arguments,
        )  # fmt: skip


class Waiting:
    """A request that is not answered yet."""

    __slots__ = ("parcel",)

    def __init__(self, parcel: Parcel) -> None:
        """Wait for what the courier carries."""
        self.parcel = parcel

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
        self, wire: Wire, keys: QueueKeys, instance: str, *, result_ttl_seconds: float
    ) -> None:
        """Claim as `instance`, whose in-flight list a supervisor recovers when it dies."""
        self._wire = wire
        self._keys = keys
        self._instance = instance
        self._result_ttl_ms = int(1000 * result_ttl_seconds)

    def claim(self, max_rows: int, max_delay_seconds: float) -> list[Claimed]:
        """Take one batch, waiting up to a second for work (stop 3); empty when there is none.

        The batch is recorded as this instance's in-flight work in the same step. Raises RedisError.
        Next stop: `worker.batch.answer_batch`.
        """
        self._wire.send(self._claim(max_rows, max_delay_seconds))
        batch, wait_seconds = self._read_batch()
        return batch or self._wait_and_claim(max_rows, max_delay_seconds, wait_seconds)

    def publish_and_claim(
        self, claimed: list[Claimed], results: list[bytes], max_rows: int, max_delay_seconds: float
    ) -> list[Claimed]:
        """Publish a batch and take the next one, in one write: as `publish`, then `claim`.

        The bell is waited for at once: a claim that leaves work behind, and every push, rings it.
        """
        bell = ("BLPOP", self._keys.bell, LONGEST_BLOCK_SECONDS)
        claim = self._claim(max_rows, max_delay_seconds)
        self._wire.send(self._publish(claimed, results, len(claimed)), bell, claim)
        self._wire.reply()
        self._wire.reply()
        batch, wait_seconds = self._read_batch()
        if batch or wait_seconds < 0:
            return batch
        return self._wait_and_claim(max_rows, max_delay_seconds, wait_seconds)

    def publish(self, claimed: list[Claimed], results: list[bytes], *, drop: bool = True) -> int:
        """Hand out a batch's answers and drop it from the in-flight work, in one step (stop 7).

        `results` holds one encoded result per claimed request. Returns how many were the first
        answer to their request. After a RedisError call it again without `drop`, since the first
        call may have been done and followed by a claim; then `put_back` what is left.
        Next stop: `Waiting.wait`.
        """
        self._wire.send(self._publish(claimed, results, len(claimed) if drop else 0))
        first: int = self._wire.reply()
        return first

    def put_back(self) -> tuple[int, int]:
        """Return what this instance holds to the queue, after a lost connection."""
        return recover(
            self._wire,
            self._keys,
            self._instance,
            crashed=False,
            result_ttl_seconds=self._result_ttl_ms / 1000,
        )

    def _claim(self, max_rows: int, max_delay_seconds: float) -> tuple[Any, ...]:
        keys = self._keys
        return (
            "EVALSHA", script_digest("claim"), 3, keys.queue, keys.bell,
            keys.inflight + self._instance, max_rows, max_delay_seconds, keys.body,
        )  # fmt: skip

    def _publish(
        self, claimed: list[Claimed], results: list[bytes], drop_count: int
    ) -> tuple[Any, ...]:
        keys, answers = self._keys, list[Any]()
        for item, result in zip(claimed, results, strict=True):
            answers += (item.id, result)
        return (
            "EVALSHA", script_digest("publish"), 1, keys.inflight + self._instance,
            drop_count, self._result_ttl_ms, keys.body, keys.result, keys.answered, *answers,
        )  # fmt: skip

    def _wait_and_claim(
        self, max_rows: int, max_delay_seconds: float, wait_seconds: float
    ) -> list[Claimed]:
        """Block on the bell, or for as long as pending requests may still wait; then claim."""
        seconds = LONGEST_BLOCK_SECONDS if wait_seconds < 0 else max(wait_seconds, 0.001)
        bell = ("BLPOP", self._keys.bell, seconds)
        self._wire.send(bell, self._claim(max_rows, max_delay_seconds))
        self._wire.reply()
        return self._read_batch()[0]

    def _read_batch(self) -> tuple[list[Claimed], float]:
        now, wait_seconds, *parts = self._wire.reply()
        batch = [
            _claimed(ticket, body, float(now))
            for ticket, body in zip(parts[::2], parts[1::2], strict=True)
        ]
        return batch, float(wait_seconds)


def recover(
    wire: Wire, keys: QueueKeys, instance: str, *, crashed: bool, result_ttl_seconds: float
) -> tuple[int, int]:
    """Put an instance's in-flight work back to the head of the queue.

    A crash counts as an attempt: after MAX_ATTEMPTS a request is answered with ModelCrashed.
    Returns how many requests went back and how many were given up. Raises RedisError.
    """
    wire.send(
        ("EVALSHA", script_digest("recover"), 3, keys.queue, keys.bell, keys.inflight + instance,
         int(crashed), MAX_ATTEMPTS, int(1000 * result_ttl_seconds),
         keys.body, keys.result, keys.answered, _CRASHED)
    )  # fmt: skip
    back, given_up = wire.reply()
    return back, given_up


def _claimed(ticket: bytes, body: bytes, now: float) -> Claimed:
    _, attempts, rows, enqueued, _, _ = TICKET.unpack_from(ticket)
    request_id = ticket[TICKET.size :].decode()
    return Claimed(request_id, rows, attempts + 1, max(0.0, now - enqueued), body)
