"""The commands of a request's way through Redis, for whoever sends them."""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from shared.courier.pending import PushArguments
from shared.errors import ModelCrashed, RequestExpired
from shared.messages import InferRequest, InferResult
from shared.model_spec import ModelSpec, QueuePolicy
from shared.request_queue.claimed import Answers, Batching, Claimed
from shared.request_queue.keys import DELAY, REJECT, QueueKeys
from shared.settings import Settings
from shared.wire.client import milliseconds
from shared.wire.packing import PackedPrefix, PrefixedCommand
from shared.wire.scripts import script_digest

LATE_SECONDS = 60.0
"""What a batch that began before its requests' deadline may take beside its longest run."""
IDEMPOTENT_RESULT_SECONDS = 3600.0
"""How long the answer to a request with an Idempotency-Key is kept."""
DEAD_SECONDS = 7 * 86400.0
"""How long a request that was given up is kept."""
_IDEMPOTENT_MS = milliseconds(IDEMPOTENT_RESULT_SECONDS)
MAX_ATTEMPTS = 3
_CRASHED = InferResult(
    error=ModelCrashed(f"the worker process died {MAX_ATTEMPTS} times while running this request")
).encode()
_TERMS = struct.Struct("<BdI")
_REJECTED = InferResult(error=RequestExpired("Request timeout expired")).encode()


class CacheLimits(NamedTuple):
    """What one model version's cache may hold, and how long an answer in it is good."""

    bytes: int = 64 * 2**20
    seconds: float = 300.0


class Limits(NamedTuple):
    """What may wait for one model version: requests, and bytes of their bodies.

    `policies` are those of its levels, level 1 first, or none. An answer that was in the cache is
    kept for `result_ttl_seconds`, until it is read.
    A body outlives its request's deadline by `grace_seconds`: a batch that was claimed just before
    it may run so long, and without its body a request's answer is thrown away.
    """

    requests: int = 10_000
    bytes: int = 256 * 2**20
    grace_seconds: float = 60.0 + LATE_SECONDS
    policies: tuple[QueuePolicy, ...] = ()
    result_ttl_seconds: float = 60.0
    cache: CacheLimits = CacheLimits()

    @classmethod
    def of(cls, spec: ModelSpec, settings: Settings) -> Limits:
        """Return a model version's limits."""
        return cls.usual(settings)._replace(policies=spec.queue_policies)

    @classmethod
    def usual(cls, settings: Settings) -> Limits:
        """Return the limits of any model, without policies."""
        return cls(
            settings.max_queue_size,
            settings.max_queue_bytes,
            grace_seconds(settings),
            result_ttl_seconds=settings.result_ttl_seconds,
            cache=CacheLimits(settings.cache_bytes, settings.cache_seconds),
        )

    def policy(self, level: int) -> QueuePolicy | None:
        """Return the policy of a level, if the model has any."""
        return self.policies[level - 1] if self.policies else None


def grace_seconds(settings: Settings) -> float:
    """Return how long after its deadline a request may still be answered."""
    return settings.max_batch_seconds + LATE_SECONDS


def as_push(
    request: InferRequest, keys: QueueKeys, limits: Limits, *, in_buffers: bool = False
) -> PushArguments:
    """Return what `push.lua` wants to know of a request; large ones `in_buffers` are for wires."""
    body = request.encode_large() if in_buffers else request.encode()
    policy = limits.policy(request.priority)
    return PushArguments(
        request.id, request.rows, request.priority, request.signature, request.timeout_seconds,
        milliseconds(request.timeout_seconds + limits.grace_seconds), body,
        _terms(policy, request) if policy else b"", request.digest() if keys.cache else "",
    )  # fmt: skip


def queue_timeout(policy: QueuePolicy, request: InferRequest) -> float:
    """Return how many seconds a request may wait until its policy acts on it; 0 for ever.

    What the request asks for counts when the policy allows it and it is shorter than the default. A
    policy without a default never acts by itself, so there every wish is shorter. What is not
    shorter than the request's own deadline has no effect.
    """
    seconds, wish = policy.default_timeout_seconds, request.queue_timeout_seconds
    if policy.allow_timeout_override and wish and (not seconds or wish < seconds):
        seconds = wish
    return seconds if seconds < request.timeout_seconds else 0.0


def rejected_after(policy: QueuePolicy, request: InferRequest) -> float:
    """Return how many seconds a request may wait until its policy rejects it, perhaps inf."""
    seconds = queue_timeout(policy, request) if policy.timeout_action == "REJECT" else 0.0
    return seconds or math.inf


def _terms(policy: QueuePolicy, request: InferRequest) -> bytes:
    seconds = queue_timeout(policy, request)
    action = REJECT if policy.timeout_action == "REJECT" else DELAY
    return _TERMS.pack(action if seconds else 0, seconds, policy.max_queue_size)


def push_command(
    keys: QueueKeys, limits: Limits, pushes: Iterable[PushArguments]
) -> tuple[Any, ...]:
    """Return the command that pushes requests; it replies with one status for each."""
    return (*_push_prefix(keys, limits), *itertools.chain.from_iterable(pushes))


def pusher(keys: QueueKeys, limits: Limits) -> Callable[[Iterable[PushArguments]], PrefixedCommand]:
    """Return what makes this command again and again."""
    prefix = PackedPrefix(*_push_prefix(keys, limits))
    return lambda pushes: prefix.then(*itertools.chain.from_iterable(pushes))


def _push_prefix(keys: QueueKeys, limits: Limits) -> tuple[Any, ...]:
    lists = keys.lists if limits.policies else keys.queues
    return (
        "EVALSHA", script_digest("push"), 3 + len(lists), keys.bell, keys.bytes, keys.closed,
        *lists,
        keys.body, keys.result, limits.requests, limits.bytes,
        keys.cache, milliseconds(limits.result_ttl_seconds), _IDEMPOTENT_MS, keys.levels,
    )  # fmt: skip


def cancel_command(
    keys: QueueKeys, why: str, ids: Iterable[str], *, only_waiting: bool = False
) -> tuple[Any, ...]:
    """Return the command that closes requests, counted as `why`: `expired`, `cancelled`, ..."""
    return (
        "EVALSHA", script_digest("cancel"), 3 + 2 * keys.levels, keys.bytes, keys.counts,
        keys.order, *keys.lists,
        keys.body, keys.result, keys.answered, why, int(only_waiting), keys.cache, *ids,
    )  # fmt: skip


class InstanceEnd(NamedTuple):
    """Who claims from a model version's queue, and how its batches are made."""

    keys: QueueKeys
    instance: str
    result_ttl_seconds: float
    batching: Batching = Batching()
    cache: CacheLimits = CacheLimits()


def claim_command(end: InstanceEnd, max_rows: int, max_delay_seconds: float) -> tuple[Any, ...]:
    """Return the command that claims a batch; it replies as `claim.lua` says."""
    keys, batching = end.keys, end.batching
    lists = keys.lists if batching.has_policies else keys.queues
    # Sizes are preferred while a batch may wait for company, which it does not without a delay.
    preferred = batching.preferred_sizes if max_delay_seconds else ()
    answering = (
        keys.delayed, keys.result, keys.answered,
        milliseconds(end.result_ttl_seconds), _IDEMPOTENT_MS, _REJECTED,
    )  # fmt: skip
    return (
        "EVALSHA", script_digest("claim"), 6 + len(lists), keys.bell, keys.inflight + end.instance,
        keys.bytes, keys.counts, keys.stats, keys.order, *lists,
        max_rows, max_delay_seconds, keys.body, ",".join(map(str, preferred)),
        int(batching.preserve_ordering), keys.cache,
        *(answering if batching.has_policies or batching.preserve_ordering else ()),
    )  # fmt: skip


def publisher(end: InstanceEnd) -> Callable[[list[Claimed], Answers, int], PrefixedCommand]:
    """Return what makes the command that hands out a batch's answers, and drops so many tickets.

    It replies how many were the first.
    """
    keys = end.keys
    order = (keys.order,) if end.batching.preserve_ordering else ()
    prefix = PackedPrefix(
        "EVALSHA", script_digest("publish"), 2 + len(order), keys.inflight + end.instance,
        keys.stats, *order,
        milliseconds(end.result_ttl_seconds), _IDEMPOTENT_MS, keys.body, keys.result,
        keys.answered, keys.cache, end.cache.bytes, milliseconds(end.cache.seconds),
    )  # fmt: skip

    def publish(claimed: list[Claimed], answers: Answers, drop_count: int) -> PrefixedCommand:
        results: list[Any] = []
        for item, result in zip(claimed, answers.results, strict=True):
            results += (item.id, result)
        return prefix.then(drop_count, *answers.costs, *results)

    return publish


def recover_command(end: InstanceEnd, *, crashed: bool) -> tuple[Any, ...]:
    """Return the command that puts back what an instance holds; it replies how many, and given up.

    Whatever they were claimed by: every queue is recovered in the same way.
    """
    keys = end.keys
    return (
        "EVALSHA", script_digest("recover"), 6, keys.bell, keys.inflight + end.instance, keys.bytes,
        keys.counts, keys.dead, keys.order,
        int(crashed), MAX_ATTEMPTS, milliseconds(end.result_ttl_seconds), _IDEMPOTENT_MS,
        milliseconds(DEAD_SECONDS), keys.queue, keys.body, keys.result, keys.answered,
        keys.dead_body, _CRASHED, end.instance, keys.tag,
    )  # fmt: skip
