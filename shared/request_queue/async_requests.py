"""Asynchronous requests: stored at once, asked for later, cancelled. No connection waits."""

from __future__ import annotations

import math
from secrets import token_hex
from typing import Any, Literal, NamedTuple

from redis import Redis
from redis.exceptions import NoScriptError

from shared.errors import QueueFull, VersionRetired
from shared.messages import InferRequest, InferResult
from shared.request_queue.commands import as_push, cancel_command, keep_command, push_command
from shared.request_queue.keys import QueueKeys
from shared.request_queue.limits import Kept, Limits
from shared.ticket import ASYNCHRONOUS, IDEMPOTENT
from shared.wire.client import asking
from shared.wire.scripts import script_digest, script_text

What = Literal["done", "waiting", "running", "gone"]
LONGEST_RETRY_AFTER_SECONDS = 60


class State(NamedTuple):
    """The state of a request; `ahead` are in front of it on the queue, None when not known."""

    what: What
    ahead: int | None = None
    result: InferResult | None = None


def new_id(*, idempotent: bool = False) -> str:
    """Return an id that cannot be guessed; an `idempotent` one's answer lives for an hour."""
    return (IDEMPOTENT if idempotent else ASYNCHRONOUS) + token_hex(12)


class AsyncRequests:
    """One model version's asynchronous requests; every method raises RedisUnavailable."""

    def __init__(self, client: Redis, keys: QueueKeys, limits: Limits) -> None:
        """Use `client`, one command at a time."""
        self._client = client
        self._keys = keys
        self._limits = limits

    def keep(self, request_id: str, kept: Kept | None) -> None:
        """Count what will be kept of a request, None for nothing any more.

        Raises QueueFull when that is too much.
        """
        what, wait_ms = self._run("keep", keep_command(self._keys, self._limits, request_id, kept))
        if what != b"kept":
            whose = "this model" if what == b"all" else "this model and API key"
            error = QueueFull(
                "as many bytes of answers, records and Idempotency-Keys as may be are kept for "
                f"{whose} (FERRY_MAX_KEPT_BYTES)"
            )
            seconds = math.ceil(wait_ms / 1000)
            error.retry_after_seconds = min(max(1, seconds), LONGEST_RETRY_AFTER_SECONDS)
            raise error

    def submit(self, request: InferRequest, record_bytes: int = 0) -> None:
        """Return once Redis has stored the request; raises QueueFull or VersionRetired."""
        push = as_push(request, self._keys, self._limits, record_bytes=record_bytes)
        command = push_command(self._keys, self._limits, [push])
        status = self._run("push", command)[0]
        if status.startswith(b"full"):
            raise QueueFull.with_waiting(int(status.split()[1])).of_queue()
        if status == b"closed":
            raise VersionRetired.default()

    def is_open(self, request_id: str) -> bool:
        """Tell whether a request waits or runs: it has neither an answer nor expired."""
        return bool(asking(lambda: self._client.exists(self._keys.body + request_id)))

    def state(self, request_id: str) -> State:
        """Return the state of a request; of one whose answer has expired, `gone`."""
        keys = self._keys
        command = (
            "EVALSHA", "state", 2 * keys.levels, *keys.lists,
            keys.body + request_id, keys.result + request_id, request_id, keys.cache,
        )  # fmt: skip
        what, *detail = self._run("state", command)
        if what == b"done":
            return State("done", result=InferResult.decode(detail[0]))
        name: What = what.decode()
        return State(name, detail[0] if detail else None)

    def cancel(self, request_id: str) -> What:
        """Cancel a request unless it is running; returns its state before."""
        command = cancel_command(self._keys, "cancelled", [request_id], only_waiting=True)
        answer: What = self._run("cancel", command)[0].decode()
        return answer

    def _run(self, script: str, command: tuple[Any, ...]) -> Any:
        """Run a script by its digest, or by its text where Redis does not know it yet."""
        client: Any = self._client  # its execute_command has no types

        def run() -> Any:
            try:
                return client.execute_command("EVALSHA", script_digest(script), *command[2:])
            except NoScriptError:
                return client.execute_command("EVAL", script_text(script), *command[2:])

        return asking(run)
