"""Requests for whose answer nobody waits: stored at once, asked for later, cancelled."""

from __future__ import annotations

from secrets import token_hex
from typing import Any, Literal, NamedTuple

from redis import Redis
from redis.exceptions import RedisError, ResponseError

from shared.errors import QueueFull, RedisUnavailable
from shared.messages import InferRequest, InferResult
from shared.queue_commands import Limits, as_push, cancel_command, push_command
from shared.queue_keys import DETACHED, KEPT, QueueKeys
from shared.redis_connection import script_text

FLUSH_MS = 2000

What = Literal["done", "waiting", "running", "gone"]


class State(NamedTuple):
    """What became of a request; `ahead` requests are in front of one that waits."""

    what: What
    ahead: int = 0
    result: InferResult | None = None


def new_id(*, kept: bool = False) -> str:
    """Return an id that cannot be guessed; a `kept` one's answer lives for an hour."""
    return (KEPT if kept else DETACHED) + token_hex(12)


class Detached:
    """One model version's detached requests; every method raises RedisUnavailable."""

    def __init__(self, client: Redis, keys: QueueKeys, limits: Limits) -> None:
        """Use `client`, one command at a time."""
        self._client = client
        self._keys = keys
        self._limits = limits

    def submit(self, request: InferRequest, *, durable: bool = False) -> None:
        """Return once Redis has stored the request, and if `durable` has flushed it to its disk.

        Raises QueueFull, and RedisUnavailable when Redis refuses, is away, or cannot flush
        (WAITAOF needs Redis 7.2 or any Valkey, with an append-only file).
        """
        command = push_command(self._keys, self._limits, [as_push(request)])
        status, *flushed = self._run("push", command, durable=durable)
        if status[0].startswith(b"full"):
            raise QueueFull.with_waiting(int(status[0].split()[1]))
        if durable and flushed[0][0] < 1:
            self.cancel(request.id)
            raise RedisUnavailable(f"Redis did not flush the request within {FLUSH_MS} ms")

    def state(self, request_id: str) -> State:
        """Return what became of a request; of one whose answer has expired, `gone`."""
        keys = self._keys
        command = (
            "EVALSHA", "state", keys.levels, *keys.queues,
            keys.body + request_id, keys.result + request_id, request_id,
        )  # fmt: skip
        what, *detail = self._run("state", command)[0]
        if what == b"done":
            return State("done", result=InferResult.decode(detail[0]))
        name: What = what.decode()
        return State(name, detail[0] if detail else 0)

    def cancel(self, request_id: str) -> What:
        """Take a request back unless it is running; returns what it was."""
        command = cancel_command(self._keys, "cancelled", [request_id], only_waiting=True)
        answer: What = self._run("cancel", command)[0][0].decode()
        return answer

    def _run(self, script: str, command: tuple[Any, ...], *, durable: bool = False) -> list[Any]:
        """Run a script by its text: these commands are few, and need no loading."""
        try:
            with self._client.pipeline(transaction=False) as opened:
                pipeline: Any = opened  # its execute_command has no types
                pipeline.execute_command("EVAL", script_text(script), *command[2:])
                if durable:
                    pipeline.execute_command("WAITAOF", 1, 0, FLUSH_MS)
                replies: list[Any] = pipeline.execute()
                return replies
        except ResponseError as error:
            raise RedisUnavailable(f"Redis refuses the request: {error}") from error
        except RedisError as error:
            raise RedisUnavailable("cannot reach the queue, Redis does not answer") from error
