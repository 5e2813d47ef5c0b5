"""The commands that push and cancel requests, for whoever sends them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any, NamedTuple

from shared.messages import InferRequest
from shared.parcels import Push
from shared.queue_keys import QueueKeys
from shared.redis_connection import script_digest

BODY_GRACE_SECONDS = 60.0
"""How long a body outlives its request's deadline, for what runs a little late."""


class Limits(NamedTuple):
    """What may wait for one model version: requests, and bytes of their bodies."""

    requests: int = 10_000
    bytes: int = 256 * 2**20


def as_push(request: InferRequest, *, in_pieces: bool = False) -> Push:
    """Return what `push.lua` wants to know of a request; large ones `in_pieces` are for wires."""
    body = request.encode_large() if in_pieces else request.encode()
    return Push(
        request.id, request.rows, request.priority, request.signature, request.timeout_seconds,
        int(1000 * (request.timeout_seconds + BODY_GRACE_SECONDS)), body,
    )  # fmt: skip


def push_command(keys: QueueKeys, limits: Limits, pushes: list[Push]) -> tuple[Any, ...]:
    """Return the command that pushes requests; it replies with one status for each."""
    return (
        "EVALSHA", script_digest("push"), 2 + keys.levels, keys.bell, keys.bytes, *keys.queues,
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
