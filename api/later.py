"""Answers that are asked for later, by id or by Idempotency-Key.

key                              holds                                              expires
ferry:request:<id>               Record: model, deadline, how to answer             with the answer
ferry:once:<hash of the key>     the first request's id and the hash of its body    an hour
"""

from __future__ import annotations

import time
from collections.abc import Callable
from hashlib import sha256
from typing import Any

import msgpack
import redis
from flask import Response
from pydantic import BaseModel, ConfigDict
from redis.exceptions import RedisError, ResponseError

from api.answers import How, render
from api.asking import Question
from api.json_answers import json_response
from api.queues import Queues
from shared.detached import State, new_id
from shared.errors import (
    BadRequest,
    FerryError,
    IdempotencyConflict,
    RedisUnavailable,
    RequestExpired,
    RequestGone,
    RequestStarted,
    UnknownRequest,
)
from shared.model_spec import ModelSpec
from shared.request_queue import KEPT_SECONDS
from shared.settings import Settings

LONGEST_KEY = 255
FIRST_LOOK_SECONDS, LONGEST_LOOK_SECONDS = 0.005, 0.2
MEMORY_SECONDS = 3600.0
"""How long it is known that a request existed after its answer has expired."""


class Record(BaseModel):
    """What is kept of a request beside its tensors and its answer; times are Unix seconds."""

    model_config = ConfigDict(frozen=True)

    spec: ModelSpec
    how: How
    deadline: float


class Later:
    """Stores requests and finds their answers again, in any API process."""

    def __init__(self, client: redis.Redis, settings: Settings, queues: Queues) -> None:
        """Open nothing yet."""
        self._client = client
        self._settings = settings
        self._queues = queues
        self._records = f"{settings.key_prefix}:request:"
        self._once = f"{settings.key_prefix}:once:"

    def accept(self, question: Question) -> Response:
        """Store a request and answer 202 with its location."""
        request_id = new_id()
        self._submit(request_id, question, self._settings.result_ttl_seconds)
        return _accepted(request_id, State("waiting"))

    def once(self, key: str, question: Question, *, wait: bool) -> Response:
        """Answer what the first request with this key and body was, or will be, answered.

        Raises IdempotencyConflict for another body under the same key.
        """
        if not 0 < len(key) <= LONGEST_KEY:
            raise BadRequest(f"Idempotency-Key must have 1 to {LONGEST_KEY} characters")
        name = self._once + sha256(f"{question.spec.name}\0{key}".encode()).hexdigest()
        asked = _digest(question)
        first_id = new_id(kept=True)
        found = self._claim_key(name, msgpack.packb([first_id, asked]))
        if found is None:
            request_id = first_id
            try:
                self._submit(request_id, question, KEPT_SECONDS)
            except FerryError:
                self._delete(name)
                raise
        else:
            request_id, before = msgpack.unpackb(found)
            if before != asked:
                raise IdempotencyConflict("this Idempotency-Key came with another request before")
            # Expired on the queue, or not pushed yet, by a process that may have died: pushing is
            # idempotent, so whoever comes does it.
            if self._queues.detached(question.spec).state(request_id).what == "gone":
                self._submit(request_id, question, KEPT_SECONDS)
        seconds = self._queues.timeout_seconds(question.terms) if wait else 0.0
        return self.answer(request_id, seconds, refuse_late=wait)

    def answer(
        self, request_id: str, wait_seconds: float, *, refuse_late: bool = False
    ) -> Response:
        """Return the answer, or 202 when it is not there within `wait_seconds`.

        With `refuse_late` that is RequestExpired. Raises UnknownRequest, RequestGone, and the error
        that the request was answered with.
        """
        deadline, pause = time.monotonic() + wait_seconds, FIRST_LOOK_SECONDS
        record = self._record(request_id)
        while True:
            state = self._queues.detached(record.spec).state(request_id)
            left = deadline - time.monotonic()
            if state.what in {"done", "gone"} or left <= 0:
                break
            time.sleep(min(pause, left))
            pause = min(2 * pause, LONGEST_LOOK_SECONDS)
        if state.result is not None:
            if state.result.error is not None:
                raise state.result.error
            return render(record.spec, state.result, record.how).response()
        if state.what == "gone" or time.time() > record.deadline:
            raise RequestGone(f"request {request_id} has expired, or was cancelled")
        if refuse_late:
            raise RequestExpired("Request timeout expired")
        return _accepted(request_id, state)

    def cancel(self, request_id: str) -> Response:
        """Take back a request that waits; raises RequestStarted, UnknownRequest or RequestGone."""
        what = self._queues.detached(self._record(request_id).spec).cancel(request_id)
        if what == "running":
            raise RequestStarted(f"request {request_id} is running and cannot be cancelled")
        if what == "gone":
            raise RequestGone(f"request {request_id} is answered, expired or cancelled already")
        return json_response({"id": request_id, "status": "cancelled"})

    def _submit(self, request_id: str, question: Question, keep_seconds: float) -> None:
        spec, inputs, outputs, terms, how = question
        timeout = self._queues.timeout_seconds(terms)
        record = Record(spec=spec, how=how, deadline=time.time() + timeout)
        name = self._records + request_id
        self._set(name, record.model_dump_json().encode(), timeout + keep_seconds + MEMORY_SECONDS)
        try:
            self._queues.submit(request_id, spec, inputs, outputs, terms)
        except FerryError:
            self._delete(name)
            raise

    def _record(self, request_id: str) -> Record:
        found = _asking(lambda: self._client.get(self._records + request_id))
        if found is None:
            raise UnknownRequest(f"no request {request_id!r}")
        return Record.model_validate_json(found)

    def _set(self, name: str, value: bytes, seconds: float) -> None:
        _asking(lambda: self._client.set(name, value, px=int(1000 * seconds)))

    def _claim_key(self, name: str, value: bytes) -> bytes | None:
        """Return what an earlier request wrote under `name`, or write `value` and return None."""
        ttl_ms = int(1000 * KEPT_SECONDS)
        found: bytes | None = _asking(
            lambda: self._client.set(name, value, nx=True, get=True, px=ttl_ms)
        )
        return found

    def _delete(self, name: str) -> None:
        _asking(lambda: self._client.delete(name))


def _accepted(request_id: str, state: State) -> Response:
    location = f"/v2/requests/{request_id}"
    body: dict[str, Any] = {"id": request_id, "status": state.what, "location": location}
    if state.what == "waiting":
        body["position"] = state.ahead
    return json_response(body, 202, (("Location", location),))


def _digest(question: Question) -> bytes:
    """Return a hash of what was asked, tensors included."""
    parts = [question.spec.key, question.inputs, question.outputs, question.how]
    return sha256(msgpack.packb(parts)).digest()


def _asking(command: Callable[[], Any]) -> Any:
    try:
        return command()
    except ResponseError as error:
        raise RedisUnavailable(f"Redis refuses the request: {error}") from error
    except RedisError as error:
        raise RedisUnavailable("cannot reach Redis, it does not answer") from error
