"""Puts what an instance holds back to the head of its queue."""

from __future__ import annotations

from contextlib import suppress

from redis.exceptions import ResponseError

from shared.bodies.worker_bodies import WorkerBodies
from shared.errors import BadMessage
from shared.messages import BESIDE_REDIS, InferRequest
from shared.request_queue.commands import recover_command
from shared.request_queue.keys import QueueKeys, lanes_of
from shared.request_queue.limits import NO_LOSS, InstanceEnd, Loss
from shared.ticket import ID_BYTES
from shared.wire.wire import Wire

MAX_VALUE_BYTES = 512 * 2**20
"""Redis hangs up on who sends a larger value (`proto-max-bulk-len`)."""


def recover(
    wire: Wire,
    keys: QueueKeys,
    instance: str,
    *,
    crashed: bool,
    result_ttl_seconds: float,
    loss: Loss = NO_LOSS,
) -> tuple[int, int]:
    """Put an instance's in-flight work back to the head of the queue.

    A crash counts as an attempt, for the suspects of a `loss` alone if it names some: after
    MAX_ATTEMPTS a request is answered with ModelCrashed, and kept among the dead. What is
    `untouched` counts none. Returns how many requests went back and how many were given up.
    Raises RedisError.
    """
    back, given_up = 0, 0
    # subtle: what goes back last stands at the head, and what nobody touched was claimed later.
    for lane in sorted(lanes_of(instance), key=lambda name: (name != loss.untouched, -len(name))):
        end = InstanceEnd(keys, lane, result_ttl_seconds)
        counts = crashed and lane != loss.untouched
        found = recover_one(wire, end, crashed=counts, loss=loss if counts else NO_LOSS)
        back, given_up = back + found[0], given_up + found[1]
    return back, given_up


def recover_one(
    wire: Wire, end: InstanceEnd, *, crashed: bool, loss: Loss = NO_LOSS
) -> tuple[int, int]:
    """Put back what was claimed by one name; see `recover`."""
    wire.send(recover_command(end, crashed=crashed, loss=loss))
    back, given_up = wire.reply()
    return back, given_up


def bring_in(wire: Wire, keys: QueueKeys, instance: str, bodies: WorkerBodies) -> None:
    """Have the bodies of what an instance holds whole in Redis, when it crashed; before `recover`.

    Who is given up is kept for longer than what lies beside Redis. Raises RedisError.
    """
    for name in keys.held_by(instance):
        wire.send(("LRANGE", name, 0, -1))
        for ticket in wire.reply():
            request_id = ticket[-ID_BYTES:].decode()
            wire.send(("GET", keys.body + request_id))
            body = wire.reply() or b""
            if body[:1] != BESIDE_REDIS:
                continue
            try:
                (beside,) = bodies.read([(request_id, body)])
                whole = InferRequest.decode(request_id, 0, body, beside).encode()
            except BadMessage:  # it is gone: who waits for it asks again
                continue
            if len(whole) > MAX_VALUE_BYTES:
                continue
            wire.send(("SET", keys.body + request_id, whole, "XX", "KEEPTTL"))
            # Redis may be full. What is not brought in is still there, and recovered as it is.
            with suppress(ResponseError):
                wire.reply()
