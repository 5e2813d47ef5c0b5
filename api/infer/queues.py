"""Asks the models: a request queue for each version."""

from __future__ import annotations

import math
from collections.abc import Callable
from threading import Lock
from typing import NamedTuple

import redis

from api.access.fair_line import ASKING
from api.access.shares import SHARE, has_its_share, is_lone
from api.infer.options import RequestOptions
from api.infer.outputs import timings_json
from api.infer.question import NoRows, Pending, Question
from api.infer.shadowing import Shadowing
from shared.access.api_key import ApiKey
from shared.access.keyring import Keyring
from shared.bodies.stored import beside_redis
from shared.errors import QueueFull
from shared.logs import SERVED
from shared.messages import InferRequest, InferResult
from shared.model_spec import ModelSpec
from shared.operations.shadow_comparison import Comparisons
from shared.registry.catalog import Catalog
from shared.request_queue.api_end import PendingRequest, RequestQueue
from shared.request_queue.async_requests import LONGEST_RETRY_AFTER_SECONDS, AsyncRequests
from shared.request_queue.keys import QueueKeys
from shared.request_queue.limits import Limits
from shared.settings import Settings

MOST_NAMES = 4096
"""Of keys, on levels of models, of which is known when they are to be counted again."""


class Answered(NamedTuple):
    """An answer, and the version that gave it."""

    spec: ModelSpec
    result: InferResult


class Queues:
    """One RequestQueue per model version, made at its first request; one more for its bulk."""

    def __init__(
        self,
        client: redis.Redis,
        settings: Settings,
        catalog: Catalog,
        keyring: Keyring | None = None,
    ) -> None:
        """Open connections like `client`'s, at a model's first request; keys are a `keyring`'s."""
        self._client = client
        self._settings = settings
        self._catalog = catalog
        self.keyring = keyring
        self._beside = beside_redis(settings, catalog.shared_memory, catalog.body_stores)
        self._asked = 0
        self._not_before: dict[tuple[str, int, str], int] = {}
        self._queues: dict[tuple[str, int, bool, bool], RequestQueue] = {}
        self._making = Lock()
        self._shadowing = Shadowing(
            Comparisons(client, settings.key_prefix), self._queue,
            settings.request_timeout_seconds, settings.shadow_examples,
        )  # fmt: skip

    def ask(self, question: Question) -> Answered:
        """Push one request and wait for its answer (stop 3); raises what either raises.

        Next stop: `RequestQueue.push`.
        """
        result = self.wait(question.spec, self.push(question))
        self.copy_to_shadow(question, result)
        return Answered(question.spec, result)

    def push(self, question: Question, then: Callable[[], None] | None = None) -> Pending:
        """Push one request, and call `then` once it is done.

        Raises QueueFull when too many wait in this process. One of no rows is answered at once.
        """
        if question.inputs and 0 in question.inputs[0].shape:
            self._catalog.check_serves(question.spec, named=question.named)
            answer = NoRows(InferResult(question.spec.answer_to_no_rows(question.outputs)))
            if then is not None:
                then()
            return answer
        queue = self._queue(question.spec)
        self._check_room(question, queue)
        request = self._request(queue.new_id(), question)
        if (asking := ASKING.get()).waited_seconds:
            request = request._replace(timeout_seconds=asking.left_of(request.timeout_seconds))
        if (trace := question.options.trace) is not None:
            with trace.push():
                return queue.push(request, question.options.client, then)
        return queue.push(request, question.options.client, then)

    def push_piece(
        self, question: Question, then: Callable[[], None], *, is_bulk: bool
    ) -> PendingRequest:
        """Push one request of some rows, and call `then` once it is done.

        One `is_bulk` waits behind everybody else's, on the queue of bulk jobs, and goes along with
        such pieces only: who else went along would pay for a full batch. Raises as `push`.
        """
        queue = self._queue(question.spec, with_bulk=True)
        self._check_room(question, queue)
        request = self._request(queue.new_id(), question)
        if is_bulk:
            other = request.signature[::-1]  # than everybody's, and the same for all pieces
            request = request._replace(priority=question.spec.bulk_queue, signature=other)
        return queue.push(request, question.options.client, then)

    def _check_room(self, question: Question, queue: RequestQueue) -> None:
        """Raise QueueFull when too many wait in this process, or of the model's in `queue`.

        subtle: until the courier counts the request nothing may wait, for Redis say: under gevent
        the others that come meanwhile would all be counted as this one was.
        """
        waiting = sum([other.waiting for other in list(self._queues.values())])
        waiting -= self._shadowing.under_way
        if waiting >= self._settings.max_waiting:
            busy = [key for (key, *_), other in list(self._queues.items()) if other.waiting]
            raise self._with_retry_after(busy, QueueFull.with_waiting(waiting))
        free = self._settings.max_waiting - waiting
        self._asked += 1
        if question.owner is not None and not is_lone(self.keyring):
            # fast: while as many are free as are taken, no key has its share.
            if waiting > free:
                self._check_key(question, question.owner, queue, free)
        elif has_its_share(queue.waiting, free):
            self._check_model(question, queue, free)

    def _check_model(self, question: Question, queue: RequestQueue, free: int) -> None:
        """Raise QueueFull when the model, on this level, has its share of what may wait.

        A lone model without levels has all.
        """
        spec, waiting = question.spec, queue.waiting
        if spec.levels > 1:
            waiting = queue.waiting_on(question.options.level(spec))
        elif self._catalog.has_one_model:
            return
        if has_its_share(waiting, free):
            raise self._with_retry_after([spec.key], QueueFull.with_waiting(waiting))

    def _check_key(self, question: Question, key: ApiKey, queue: RequestQueue, free: int) -> None:
        """Raise QueueFull when the key has its share, or the model, on this level, has the key's.

        fast: as each request takes one place, it is known how many may come before either can be;
        until then nobody counts.
        """
        spec = question.spec
        level = question.options.level(spec)
        name = (key.id, level, spec.key)
        if self._asked < self._not_before.get(name, 0):
            return
        waiting = sum(each.waiting_of(key.id) for each in list(self._queues.values()))
        spare: float = SHARE * free - waiting
        if spec.levels > 1 or not self._catalog.has_one_model:
            spare = min(spare, SHARE * spare / (SHARE + 1) - queue.waiting_of(key.id, level))
        if spare < 0:
            raise self._with_retry_after([spec.key], QueueFull.with_waiting(waiting))
        if len(self._not_before) >= MOST_NAMES:
            self._not_before.clear()
        self._not_before[name] = self._asked + int(spare / (SHARE + 1))

    def _request(self, request_id: str, question: Question) -> InferRequest:
        question.options.check_timeout(self._settings.longest_timeout_seconds)
        return question.request(request_id, self._settings.request_timeout_seconds)

    def wait(self, spec: ModelSpec, pending: Pending) -> InferResult:
        """Return a model's answer; raises what `PendingRequest.wait` raises."""
        try:
            result = pending.wait()
        except QueueFull as error:
            raise self._with_retry_after([spec.key], error) from None
        if self._settings.access_log:
            SERVED.set(
                {"model": spec.name, "version": spec.version, **timings_json(result.timings)}
            )
        return result

    def submit(self, request_id: str, question: Question, record_bytes: int) -> None:
        """Store a request for whose answer nobody waits.

        Raises QueueFull and RedisUnavailable.
        """
        request = self._request(request_id, question)
        try:
            self.async_requests(question.spec).submit(request, record_bytes)
        except QueueFull as error:
            raise self._with_retry_after([question.spec.key], error) from None

    def copy_to_shadow(self, question: Question, result: InferResult) -> None:
        """Ask the model's shadow the same, if it has one, and compare the answers."""
        shadow = self._catalog.shadow_of(question.spec)
        if shadow is None or not shadow.answers_as(question.spec):
            return
        if not shadow.has_rows(question.inputs):
            return
        lowest = question.options._replace(priority=shadow.priority_levels, client=None)
        copied = question._replace(spec=shadow, options=lowest, named=True, sent=())
        self._shadowing.copy(copied, question.spec.version, result)

    def async_requests(self, spec: ModelSpec) -> AsyncRequests:
        """Return the model's requests that nobody waits for."""
        return AsyncRequests(self._client, self._keys(spec), self._limits(spec))

    def timeout_seconds(self, question: Question) -> float:
        """Return the request's deadline in seconds from its push, see `deadline_seconds`."""
        options, default_seconds = question.options, self._settings.request_timeout_seconds
        return options.deadline_seconds(question.spec, default_seconds)

    def most_seconds(self, options: RequestOptions) -> float:
        """Return the deadline of a request without v2's `timeout`, whichever model it asks."""
        return options.timeout_seconds or self._settings.request_timeout_seconds

    def _with_retry_after(self, model_keys: list[str], error: QueueFull) -> QueueFull:
        """Return the error with `retry_after_seconds`, when half of those who wait are answered."""
        rate = sum(map(self._catalog.drain_rate, model_keys))
        if rate > 0:
            seconds = math.ceil(error.waiting / rate / 2)
            error.retry_after_seconds = min(max(1, seconds), LONGEST_RETRY_AFTER_SECONDS)
        return error

    def _keys(self, spec: ModelSpec) -> QueueKeys:
        return QueueKeys.of(spec, self._settings.key_prefix)

    def _limits(self, spec: ModelSpec) -> Limits:
        return Limits.of(spec, self._settings)

    def _queue(self, spec: ModelSpec, *, with_bulk: bool = False) -> RequestQueue:
        # a restart may bring another config
        name = (spec.key, spec.levels, spec.cached, with_bulk)
        queue = self._queues.get(name)
        if queue is None:
            with self._making:
                queue = self._queues.get(name)  # another thread may have made it meanwhile
                if queue is None:
                    keys = self._keys(spec).with_bulk if with_bulk else self._keys(spec)
                    queue = RequestQueue(self._client, keys, self._limits(spec), *self._beside)
                    self._queues[name] = queue
        return queue
