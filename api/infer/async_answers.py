"""Asynchronous requests: stored at once, answered later by id or by `Idempotency-Key`.

`shared/request_queue/keys.py` has the schema.
"""

from __future__ import annotations

import socket
import time
from hashlib import sha256
from typing import Any

import msgpack
import redis

from api.access.shares import KeyShares
from api.infer.answer import HttpAnswer, json_answer
from api.infer.question import Question, shown_to
from api.infer.queues import Queues
from api.infer.render import render
from shared.access.api_key import ApiKey
from shared.courier.departures import has_left
from shared.errors import (
    BadRequest,
    ClientLeft,
    FerryError,
    IdempotencyConflict,
    QueueFull,
    RedisUnavailable,
    RequestExpired,
    RequestGone,
    RequestStarted,
    UnknownRequest,
)
from shared.messages import AnswerForm
from shared.model_spec import ModelSpec
from shared.request_queue.async_records import KEPT_BESIDES_BYTES, AsyncRecords, FirstUse
from shared.request_queue.async_requests import AsyncRequests, State, new_id
from shared.request_queue.limits import IDEMPOTENT_RESULT_SECONDS, Kept, grace_seconds
from shared.settings import Settings

LONGEST_KEY = 255
FIRST_LOOK_SECONDS, LONGEST_LOOK_SECONDS = 0.005, 0.2


class AsyncAnswers:
    """Stores requests and finds their answers again, in any API process."""

    def __init__(self, client: redis.Redis, settings: Settings, queues: Queues) -> None:
        """Open nothing yet."""
        self._settings = settings
        self._queues = queues
        self._places = KeyShares(settings.max_waiting, queues.keyring)
        longest_kept = max(IDEMPOTENT_RESULT_SECONDS, settings.result_ttl_seconds)
        self._records = AsyncRecords(
            client,
            settings.key_prefix,
            settings.longest_timeout_seconds + longest_kept,
            grace_seconds=grace_seconds(settings),
        )

    def accept(self, question: Question) -> HttpAnswer:
        """Store a request and answer 202 with its location."""
        request_id = new_id()
        self._submit(request_id, question, self._settings.result_ttl_seconds)
        return _accepted(request_id, State("waiting"))

    def once(self, key: str, path: str, question: Question, *, wait: bool) -> HttpAnswer:
        """Give the answer of the first request with this key, path and body, once it is there.

        Raises IdempotencyConflict when the first was another, RequestExpired when the answer is
        not there by this request's deadline; the same key may then come again.
        """
        ours = FirstUse(new_id(idempotent=True), _digest(path, question))
        kept = f"{owner_of(question)}\0{key}" if question.owner else key  # each has its own
        _check_length(key)
        first = self._first_use(question.spec.name, kept, ours)
        request_id = first.request_id
        if first == ours:
            spec = self._submit_first(request_id, kept, question)
        else:
            spec = self._joined(request_id, question)
        seconds = self._queues.timeout_seconds(question) if wait else 0.0
        state = self._wait(request_id, spec, seconds, question.options.client, question.owner)
        if state.result is None and wait:
            raise RequestExpired("Request timeout expired")
        return _answered(request_id, spec, question.form, state, question.owner)

    def check_key(
        self, spec: ModelSpec, key: str, *asked: bytes, owner: ApiKey | None = None
    ) -> None:
        """Raise IdempotencyConflict where a key of a model's came with another request before.

        For requests whose answers are not kept, as they are made anew at no harm. Raises QueueFull
        when as many keys are kept as may be.
        """
        digest = sha256(msgpack.packb(asked)).digest()
        _check_length(key)
        key = f"{owner.id}\0{key}" if owner else key
        ours = FirstUse(new_id(idempotent=True), digest)
        if self._first_use(spec.name, key, ours) != ours:
            return
        kept = Kept(KEPT_BESIDES_BYTES, IDEMPOTENT_RESULT_SECONDS, 0.0, owner.id if owner else "")
        try:
            self._queues.async_requests(spec).keep(ours.request_id, kept)
        except FerryError:
            self._records.forget_key(spec.name, key)
            raise

    def _first_use(self, model: str, key: str, ours: FirstUse) -> FirstUse:
        first = self._records.first(model, key, ours)
        if first.asked != ours.asked:
            raise IdempotencyConflict("this Idempotency-Key came with another request before")
        return first

    def respond(
        self,
        request_id: str,
        wait_seconds: float,
        client: socket.socket | None,
        key: ApiKey | None = None,
    ) -> HttpAnswer:
        """Return the answer, or 202 when it is not there within `wait_seconds`.

        Raises UnknownRequest, RequestGone, and the error that the request was answered with.
        """
        spec, form = self._find(request_id, key)
        state = self._wait(request_id, spec, wait_seconds, client, key)
        return _answered(request_id, spec, form, state, key)

    def _find(self, request_id: str, key: ApiKey | None) -> tuple[ModelSpec, AnswerForm]:
        """Return a request's model and form; one of another key is unknown, but to admins."""
        spec, form, owner = self._records.find(request_id)
        if key is not None and not key.is_admin and owner != key.id:
            raise UnknownRequest(f"no request {request_id!r}")
        return spec, form

    def cancel(self, request_id: str, key: ApiKey | None = None) -> HttpAnswer:
        """Take back a request that waits; raises RequestStarted, UnknownRequest or RequestGone."""
        requests = self._queues.async_requests(self._find(request_id, key)[0])
        what = requests.cancel(request_id)
        if what == "gone":  # off the queue: only its state tells an answer from an expiry
            what = requests.state(request_id).what
        if what in {"running", "done"}:
            raise RequestStarted(f"request {request_id} is {what} and cannot be cancelled")
        if what == "gone":
            raise _gone(request_id)
        return json_answer({"id": request_id, "status": "cancelled"})

    def _submit(self, request_id: str, question: Question, keep_seconds: float) -> ModelSpec:
        """Push, then save the record: a refused request leaves none. Returns the version asked."""
        spec, life_seconds = question.spec, self._queues.timeout_seconds(question) + keep_seconds
        durable, requests = self._settings.durable, self._queues.async_requests(question.spec)
        kept = self._kept(question, life_seconds)
        requests.keep(request_id, kept)
        try:
            self._queues.submit(request_id, question, kept.bytes)
        except FerryError:
            requests.keep(request_id, None)
            raise
        try:
            self._records.save(
                request_id, spec, question.form, life_seconds,
                durable=durable, owner=owner_of(question),
            )  # fmt: skip
        except RedisUnavailable:  # without a record nobody could ask for the answer
            requests.cancel(request_id)
            raise
        return spec

    def _kept(self, question: Question, life_seconds: float) -> Kept:
        owner, records = owner_of(question), self._records
        open_seconds = self._queues.timeout_seconds(question) + grace_seconds(self._settings)
        size = records.record_bytes(question.form, owner)
        return Kept(size, records.record_seconds(life_seconds), open_seconds, owner)

    def _submit_first(self, request_id: str, key: str, question: Question) -> ModelSpec:
        """Submit under a new key; one that is refused frees the key, unless it came again since."""
        try:
            return self._submit(request_id, question, IDEMPOTENT_RESULT_SECONDS)
        except FerryError:
            # The same key may have come again meanwhile and pushed the request under this id.
            if self._queues.async_requests(question.spec).state(request_id).what == "gone":
                self._records.forget_key(question.spec.name, key)
            raise

    def _joined(self, request_id: str, question: Question) -> ModelSpec:
        """Return the model version that an earlier request asked, and push it again if it is gone.

        It may have expired on the queue, or not be pushed yet, by a process that may have died:
        pushing is idempotent, so whoever comes does it.
        """
        try:
            spec = self._records.find(request_id).spec  # another version may serve by now
        except UnknownRequest:  # the process that came first has not saved its record yet
            spec = question.spec
        if self._queues.async_requests(spec).state(request_id).what != "gone":
            return spec
        return self._submit(request_id, question, IDEMPOTENT_RESULT_SECONDS)

    def _wait(
        self,
        request_id: str,
        spec: ModelSpec,
        seconds: float,
        client: socket.socket | None,
        key: ApiKey | None,
    ) -> State:
        """Return a request's state as soon as it is closed, or after some seconds.

        Raises ClientLeft when the client hangs up, which the request outlives, and
        QueueFull when too many wait in this process, or too many of the API key's.
        """
        requests = self._queues.async_requests(spec)
        if seconds > 0 and requests.is_open(request_id):
            if not self._places.try_take(key):
                raise QueueFull.with_waiting(self._places.taken)
            try:
                _wait_until_closed(requests, request_id, seconds, client)
            finally:
                self._places.give_back(key)
        # subtle: where it stands on the queue costs a walk over the queue, so that is asked last.
        return requests.state(request_id)


def _wait_until_closed(
    requests: AsyncRequests, request_id: str, seconds: float, client: socket.socket | None
) -> None:
    deadline, pause = time.monotonic() + seconds, FIRST_LOOK_SECONDS
    while (left := deadline - time.monotonic()) > 0 and requests.is_open(request_id):
        if client is not None and has_left(client):
            raise ClientLeft("the client hung up")
        time.sleep(min(pause, left))
        pause = min(2 * pause, LONGEST_LOOK_SECONDS)


def _check_length(key: str) -> None:
    if not 0 < len(key) <= LONGEST_KEY:
        raise BadRequest(f"Idempotency-Key must have 1 to {LONGEST_KEY} characters")


def owner_of(question: Question) -> str:
    """Return the id of the API key that asks, empty where there is none."""
    return question.owner.id if question.owner else ""


def _answered(
    request_id: str, spec: ModelSpec, form: AnswerForm, state: State, key: ApiKey | None
) -> HttpAnswer:
    if state.what == "gone":
        raise _gone(request_id)
    if state.result is None:
        return _accepted(request_id, state)
    if state.result.error is not None:
        raise state.result.error
    return render(spec, shown_to(key, state.result), form)


def _accepted(request_id: str, state: State) -> HttpAnswer:
    location = f"/v2/requests/{request_id}"
    body: dict[str, Any] = {"id": request_id, "status": state.what, "location": location}
    if state.ahead is not None:
        body["position"] = state.ahead
    return json_answer(body, 202, (("Location", location),))


def _gone(request_id: str) -> RequestGone:
    return RequestGone(f"request {request_id} has expired, or was cancelled")


def _digest(path: str, question: Question) -> bytes:
    """Return a hash of path, tensors, outputs, parameters and form, as the client gave them."""
    _, inputs, outputs, options, form, _, sent, _ = question
    form = form._replace(cut=())  # it was the model's tokenizer that cut
    asked = [path, sent or inputs, outputs, dict(options.parameters), form]
    return sha256(msgpack.packb(asked)).digest()
