"""Both ends of every hop a request takes through Redis.

Keys of one model version m/v share a hash tag, so each script runs in one slot and a cluster
shards by model. `ferry` is FERRY_KEY_PREFIX.

    key                             type    holds                                           expires
    ferry:{m/v}:queue               list    tickets of waiting requests, oldest first       no
    ferry:{m/v}:bell                list    at most one wake-up token, no data              no
    ferry:{m/v}:inflight:<instance> list    tickets claimed and not yet published           no (see 1)
    ferry:{m/v}:body:<id>           string  a request's tensors; exists while it is open    yes
    ferry:{m/v}:result:<id>         list    one encoded result, for BLPOP to wait on        yes

    1: dropped when its batch is published; a dead instance's is moved by `recover`.

A ticket is 30 bytes that the scripts read without decoding anything else, then the id:

    B version   B attempts   I4 rows   d enqueued   d deadline   8 bytes signature   id

Times are Redis's own clock, so no host's clock matters. A request is open while its body exists:
whoever removes the body (the first answer, expiry, a cancel) closes it, so an answer is given once
however often a request is run.
"""

from __future__ import annotations

import logging
import struct
import time
from dataclasses import dataclass
from typing import Any

from redis.exceptions import RedisError

from shared.errors import (
    ModelCrashed,
    QueueFull,
    RedisUnavailable,
    RequestExpired,
)
from shared.messages import InferRequest, InferResult
from shared.redis_connection import Wire, Wires, script_digest

log = logging.getLogger(__name__)

TICKET = struct.Struct("<BBIdd8s")
MAX_ATTEMPTS = 3
BODY_GRACE_SECONDS = 60.0
LONGEST_BLOCK_SECONDS = 1.0
_CRASHED = InferResult(
    error=ModelCrashed(f"the worker process died {MAX_ATTEMPTS} times while running this request")
).encode()


@dataclass(frozen=True, slots=True)
class Claimed:
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


class RequestQueue:
    """The API's end: push a request, wait for its answer."""

    def __init__(
        self, wires: Wires, keys: QueueKeys, *, max_queue_size: int, result_ttl_seconds: float
    ) -> None:
        """Bind to one model version's keys; opens nothing."""
        self._wires = wires
        self._keys = keys
        self._max_queue_size = max_queue_size
        self._result_ttl_seconds = result_ttl_seconds

    def push(self, request: InferRequest) -> Waiting:
        """Store the request and start waiting for its answer, in one write (stop 2).

        Raises QueueFull, or RedisUnavailable when Redis cannot store it; then nothing was
        accepted. Next stop: `worker.loop.run`, which claims it.
        """
        deadline = time.monotonic() + request.timeout_seconds
        body = request.encode()
        try:
            wire = self._start(request, body, request.timeout_seconds)
        except RedisError:
            self._wires.close()  # they were opened to a Redis that is gone; try a fresh one, once
            try:
                wire = self._start(request, body, request.timeout_seconds)
            except RedisError as error:
                log.warning("request %s refused, Redis fails: %s", request.id, error)
                raise RedisUnavailable(f"cannot reach the request queue: {error}") from error
        return Waiting(self, wire, request, body, deadline)

    def _start(self, request: InferRequest, body: bytes, timeout_seconds: float) -> Wire:
        """Send push and BLPOP together and read push's reply; the wire then waits in BLPOP."""
        keys = self._keys
        result = keys.result + request.id
        ttl_ms = int(1000 * (timeout_seconds + BODY_GRACE_SECONDS))
        wire = self._wires.take()
        push = (
            "EVALSHA", script_digest("push"), 4, keys.queue, keys.bell, keys.body + request.id, result,
            request.id, request.rows, request.signature, timeout_seconds, body, self._max_queue_size, ttl_ms,
        )  # fmt: skip
        wire.send(push, ("BLPOP", result, max(timeout_seconds, 0.001)))
        status = wire.reply()
        if status == b"full":
            wire.reply(LONGEST_BLOCK_SECONDS)
            self._wires.give_back(wire)
            raise QueueFull("Exceeds maximum queue size")
        return wire


@dataclass(slots=True)
class Waiting:
    """A request that was accepted and is not answered yet."""

    queue: RequestQueue
    wire: Wire | None
    request: InferRequest
    body: bytes
    deadline: float

    def wait(self) -> InferResult:
        """Block until the answer is there (stop 8) and return it, or raise the error it carries.

        When Redis goes away the request is pushed again until the deadline: the same id is stored
        once, so this helps a Redis that came back empty and changes nothing otherwise.
        Raises RequestExpired at the deadline.
        """
        while True:
            remaining = self.deadline - time.monotonic()
            try:
                if self.wire is None:
                    self.wire = self.queue._start(self.request, self.body, remaining)
                reply = self.wire.reply(max(remaining, 0.0))
            except RedisError as error:
                self.wire = None
                self._pause(error)
                continue
            self.queue._wires.give_back(self.wire)
            return _answer(reply)

    def _pause(self, error: RedisError) -> None:
        remaining = self.deadline - time.monotonic()
        if remaining <= 0:
            raise RequestExpired("Request timeout expired") from error
        log.warning("request %s waits on: Redis fails, trying again: %s", self.request.id, error)
        time.sleep(min(0.1, remaining))


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
        script = (
            "EVALSHA", script_digest("claim"), 3, self._keys.queue, self._keys.bell,
            self._keys.inflight + self._instance, max_rows, max_delay_seconds, self._keys.body,
        )  # fmt: skip
        self._wire.send(script)
        now, wait, *batch = self._wire.reply()
        if not batch:
            seconds = LONGEST_BLOCK_SECONDS if float(wait) < 0 else max(float(wait), 0.001)
            self._wire.send(("BLPOP", self._keys.bell, seconds), script)
            self._wire.reply(seconds)
            now, wait, *batch = self._wire.reply()
        return [
            _claimed(ticket, body, float(now))
            for ticket, body in zip(batch[::2], batch[1::2], strict=True)
        ]

    def publish(self, claimed: list[Claimed], results: list[bytes]) -> int:
        """Hand out a batch's answers and drop it from the in-flight work, in one step (stop 7).

        `results` holds one encoded result per claimed request. Returns how many were the first
        answer to their request. May be called again after a RedisError: nothing is answered twice.
        Next stop: `Waiting.wait`.
        """
        answers: list[Any] = []
        for item, result in zip(claimed, results, strict=True):
            answers += (item.id, result)
        self._wire.send(
            ("EVALSHA", script_digest("publish"), 1, self._keys.inflight + self._instance,
             len(claimed), self._result_ttl_ms, self._keys.body, self._keys.result, *answers)
        )  # fmt: skip
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


def recover(
    wire: Wire, keys: QueueKeys, instance: str, *, crashed: bool, result_ttl_seconds: float
) -> tuple[int, int]:
    """Put an instance's in-flight work back to the head of the queue.

    A crash counts as an attempt: after MAX_ATTEMPTS a request is answered with ModelCrashed.
    Returns how many requests went back and how many were given up. Raises RedisError.
    """
    wire.send(
        ("EVALSHA", script_digest("recover"), 3, keys.queue, keys.bell, keys.inflight + instance,
         int(crashed), MAX_ATTEMPTS, int(1000 * result_ttl_seconds), keys.body, keys.result, _CRASHED)
    )  # fmt: skip
    back, given_up = wire.reply()
    return back, given_up


def _claimed(ticket: bytes, body: bytes, now: float) -> Claimed:
    _, attempts, rows, enqueued, _, _ = TICKET.unpack_from(ticket)
    request_id = ticket[TICKET.size :].decode()
    return Claimed(request_id, rows, attempts + 1, max(0.0, now - enqueued), body)


def _answer(reply: list[bytes] | None) -> InferResult:
    if reply is None:
        raise RequestExpired("Request timeout expired")
    result = InferResult.decode(reply[1])
    if result.error is not None:
        raise result.error
    return result
