"""The commands that push and cancel requests, for whoever sends them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any, NamedTuple

from shared.messages import InferRequest
from shared.model_spec import ModelSpec
from shared.parcels import Push
from shared.queue_keys import QueueKeys
from shared.redis_connection import script_digest
from shared.settings import Settings

LATE_SECONDS = 60.0
"""What a batch that began before its requests' deadline may take beside its longest run."""


class Limits(NamedTuple):
    """What may wait for one model version: requests, and bytes of their bodies.

    A body outlives its request's deadline by `grace_seconds`: a batch that was claimed just before
    it may run so long, and without its body a request's answer is thrown away.
    """

    requests: int = 10_000
    bytes: int = 256 * 2**20
    grace_seconds: float = 60.0 + LATE_SECONDS

    @classmethod
    def of(cls, spec: ModelSpec, settings: Settings) -> Limits:
        """Return a model version's limits."""
        requests = spec.max_queue_size or settings.max_queue_size
        return cls(requests, settings.max_queue_bytes, grace_seconds(settings))


def grace_seconds(settings: Settings) -> float:
    """Return how long after its deadline a request may still be answered."""
    return settings.max_batch_seconds + LATE_SECONDS


def as_push(request: InferRequest, limits: Limits, *, in_pieces: bool = False) -> Push:
    """Return what `push.lua` wants to know of a request; large ones `in_pieces` are for wires."""
    body = request.encode_large() if in_pieces else request.encode()
    return Push(
        request.id, request.rows, request.priority, request.signature, request.timeout_seconds,
        int(1000 * (request.timeout_seconds + limits.grace_seconds)), body,
    )  # fmt: skip


def push_command(keys: QueueKeys, limits: Limits, pushes: list[Push]) -> tuple[Any, ...]:
    """Return the command that pushes requests; it replies with one status for each."""
    return (
        "EVALSHA", script_digest("push"), 3 + keys.levels, keys.bell, keys.bytes, keys.closed,
        *keys.queues,
        keys.body, keys.result, limits.requests, limits.bytes,
        *itertools.chain.from_iterable(pushes),
    )  # fmt: skip


def cancel_command(
    keys: QueueKeys, why: str, ids: Iterable[str], *, only_waiting: bool = False
) -> tuple[Any, ...]:
    """Return the command that closes requests, counted as `why`: `expired` or `cancelled`."""
    return (
        "EVALSHA", script_digest("cancel"), 2 + keys.levels, keys.bytes, keys.counts, *keys.queues,
        keys.body, why, int(only_waiting), *ids,
    )  # fmt: skip
