"""The commands that run the scripts of a request's way through Redis."""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Callable, Iterable
from typing import Any

from shared.courier.pending import PushArguments
from shared.errors import ModelCrashed, RequestExpired
from shared.messages import Buffers, InferRequest, InferResult
from shared.model_spec import QueuePolicy
from shared.request_queue.claimed import Claimed, EncodedResults
from shared.request_queue.keys import QueueKeys
from shared.request_queue.limits import (
    IDEMPOTENT_RESULT_SECONDS,
    NO_LOSS,
    InstanceEnd,
    Kept,
    Limits,
    Loss,
)
from shared.ticket import DELAY, REJECT
from shared.wire.client import milliseconds
from shared.wire.packing import PackedPrefix, PrefixedCommand
from shared.wire.scripts import script_digest

DEAD_SECONDS = 7 * 86_400.0
"""The life of a request that was given up."""
_IDEMPOTENT_MS = milliseconds(IDEMPOTENT_RESULT_SECONDS)
MAX_ATTEMPTS = 3
MAX_LOSSES = 2
"""Attempts of a request that ran when an instance failed for good: more would fail as many."""
_LOST = (
    f"the worker process had to be replaced {MAX_LOSSES} times while running this request, "
    "the last time since {reason}"
)
_CRASHED = InferResult(
    error=ModelCrashed(f"the worker process died {MAX_ATTEMPTS} times while running this request")
).encode()
_TERMS = struct.Struct("<BdIII")
_TOO_LATE = InferResult(error=RequestExpired("Request timeout expired")).encode()


def as_push(
    request: InferRequest,
    keys: QueueKeys,
    limits: Limits,
    *,
    in_buffers: bool = False,
    record_bytes: int = 0,
    body: bytes | Buffers = b"",
) -> PushArguments:
    """Return the arguments of a request's push; large ones `in_buffers` are for wires only.

    Its `record_bytes` count among those that wait, beside its body's. A `body` is in the place of
    the request's own, if there is one.
    """
    body = body or (request.encode_large() if in_buffers else request.encode())
    policy = limits.policy(request.priority)
    return PushArguments(
        request.id, request.rows, request.priority, request.signature, request.timeout_seconds,
        milliseconds(request.timeout_seconds + limits.grace_seconds), body,
        _terms(policy, request, limits, record_bytes)
        if policy or request.owner or record_bytes else b"",
        request.digest() if keys.cache else "", int(request.named),
    )  # fmt: skip


def owner_of_push(push: PushArguments) -> bytes:
    """Return the id of the API key that a request came with, empty without one."""
    return push.terms[_TERMS.size :]


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


def _terms(
    policy: QueuePolicy | None, request: InferRequest, limits: Limits, record_bytes: int
) -> bytes:
    action, seconds, max_queue_size = 0, 0.0, 0
    if policy is not None:
        seconds, max_queue_size = queue_timeout(policy, request), policy.max_queue_size
        action = REJECT if policy.timeout_action == "REJECT" else DELAY
    action = action if seconds else 0
    head = _TERMS.pack(action, seconds, max_queue_size, record_bytes, limits.turn_rows)
    return head + request.owner.encode()


def push_command(
    keys: QueueKeys, limits: Limits, pushes: Iterable[PushArguments]
) -> tuple[Any, ...]:
    """Return the command that pushes requests; it replies with one status for each."""
    return (*_push_prefix(keys, limits), *itertools.chain.from_iterable(pushes))


def pusher(keys: QueueKeys, limits: Limits) -> Callable[[Iterable[PushArguments]], PrefixedCommand]:
    """Return a function that makes this command. fast: all but the pushes is packed once."""
    prefix = PackedPrefix(*_push_prefix(keys, limits))
    return lambda pushes: prefix.then(*itertools.chain.from_iterable(pushes))


def _push_prefix(keys: QueueKeys, limits: Limits) -> tuple[Any, ...]:
    lists = keys.lists if limits.policies else keys.queues
    return (
        "EVALSHA", script_digest("push"), 5 + len(lists), keys.bell, keys.bytes, keys.closed,
        keys.elsewhere, keys.turns, *lists,
        keys.body, keys.result, limits.requests, limits.bytes,
        keys.cache, milliseconds(limits.result_ttl_seconds), _IDEMPOTENT_MS, keys.levels,
    )  # fmt: skip


def keep_command(
    keys: QueueKeys, limits: Limits, request_id: str, kept: Kept | None
) -> tuple[Any, ...]:
    """Return the command that counts what will be kept of a request, None for nothing any more.

    It replies as `keep.lua` says.
    """
    head = ("EVALSHA", script_digest("keep"), 2, keys.kept, keys.kept_bytes, keys.tag, request_id)
    if kept is None:
        return head
    open_ms = milliseconds(kept.open_seconds) if kept.open_seconds else 0
    life_ms = milliseconds(kept.seconds)
    return (*head, limits.kept_bytes, kept.owner, kept.bytes, life_ms, open_ms)


def collect_command(keys: QueueKeys, process: str, ids: Iterable[str] = ()) -> tuple[Any, ...]:
    """Return the command that takes a process's stored answers: announced, or to these ids."""
    answered = keys.answered + process
    return ("EVALSHA", script_digest("collect"), 2, answered, keys.order, keys.result, *ids)


def cancel_command(
    keys: QueueKeys, why: str, ids: Iterable[str], *, only_waiting: bool = False
) -> tuple[Any, ...]:
    """Return the command that closes requests, counted as `why`: `expired`, `cancelled`, ..."""
    return (
        "EVALSHA", script_digest("cancel"), 3 + 2 * keys.levels, keys.bytes, keys.counts,
        keys.order, *keys.lists,
        keys.body, keys.result, keys.answered, why, int(only_waiting), keys.cache, *ids,
    )  # fmt: skip


def claim_command(
    end: InstanceEnd, max_rows: int, max_delay_seconds: float, bulk_first: bool, ahead: bool = False
) -> tuple[Any, ...]:
    """Return the command that claims a batch, perhaps `ahead`; it replies as `claim.lua` says.

    Bulk is served behind all levels, or with `bulk_first` before them.
    """
    keys, batching = end.keys, end.batching
    waiting = keys.with_bulk
    lists = waiting.lists if batching.has_policies else waiting.queues
    if bulk_first:
        bulk = len(lists) - len(lists) // waiting.levels
        lists = lists[bulk:] + lists[:bulk]
    # Sizes are preferred while a batch may wait for company. Without a delay it does not, and the
    # largest of them is the most that leaves together.
    preferred = batching.preferred_sizes if max_delay_seconds else ()
    if not max_delay_seconds and batching.preferred_sizes:
        max_rows = min(max_rows, batching.preferred_sizes[-1])
    return (
        "EVALSHA", script_digest("claim"), 6 + len(lists), keys.bell, keys.inflight + end.instance,
        keys.bytes, keys.counts, keys.stats, keys.order, *lists,
        max_rows, max_delay_seconds, keys.body, ",".join(map(str, preferred)),
        int(batching.preserve_ordering), keys.cache,
        milliseconds(end.result_ttl_seconds), _IDEMPOTENT_MS, _TOO_LATE, int(ahead),
    )  # fmt: skip


def publisher(end: InstanceEnd) -> Callable[[list[Claimed], EncodedResults, int], PrefixedCommand]:
    """Return a function that makes the command which publishes answers and drops so many tickets.

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

    def publish(
        claimed: list[Claimed], answers: EncodedResults, drop_count: int
    ) -> PrefixedCommand:
        results: list[Any] = []
        for item, result in zip(claimed, answers.results, strict=True):
            results += (item.id, result)
        return prefix.then(drop_count, *answers.costs, *results)

    return publish


def recover_command(end: InstanceEnd, *, crashed: bool, loss: Loss = NO_LOSS) -> tuple[Any, ...]:
    """Return the command that puts an instance's requests back; it replies how many, and given up.

    Whatever they were claimed by: every queue is recovered in the same way. With a `loss`'s
    suspects an attempt is counted for these alone, of fewer, and who is given up hears its reason.
    """
    keys, max_attempts, error = end.keys, MAX_ATTEMPTS, _CRASHED
    if loss.suspects:
        max_attempts = MAX_LOSSES
        error = InferResult(error=ModelCrashed(_LOST.format(reason=loss.reason))).encode()
    return (
        "EVALSHA", script_digest("recover"), 6, keys.bell, keys.inflight + end.instance, keys.bytes,
        keys.counts, keys.dead, keys.order,
        int(crashed), max_attempts, milliseconds(end.result_ttl_seconds), _IDEMPOTENT_MS,
        milliseconds(DEAD_SECONDS), keys.queue, keys.body, keys.result, keys.answered,
        keys.dead_body, error, end.instance, keys.tag, *loss.suspects,
    )  # fmt: skip
