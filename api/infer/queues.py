"""The request queues of all models, and what every route does with them."""

from __future__ import annotations

import math
import time
from functools import partial
from threading import Lock
from typing import NamedTuple

import redis

from api.infer.options import DEFAULT_OPTIONS, RequestOptions
from api.infer.shadowing import Shadowing
from shared.errors import QueueFull, VersionRetired
from shared.messages import InferRequest, InferResult, Tensor
from shared.model_spec import ModelSpec
from shared.operations.shadow_comparison import Comparisons
from shared.registry.catalog import Catalog
from shared.request_queue.api_end import PendingRequest, RequestQueue
from shared.request_queue.async_requests import Detached
from shared.request_queue.commands import Limits
from shared.request_queue.keys import QueueKeys
from shared.settings import Settings

LONGEST_RETRY_AFTER_SECONDS = 60
MAX_SUCCESSORS = 3
"""How often a request is sent elsewhere because the version that it went to left."""
SUCCESSOR_SECONDS = 0.05


class Answered(NamedTuple):
    """An answer, and the version that gave it."""

    spec: ModelSpec
    result: InferResult


class Queues:
    """One RequestQueue per model version, made at its first request."""

    def __init__(self, client: redis.Redis, settings: Settings, catalog: Catalog) -> None:
        """Open connections like `client`'s, at a model's first request."""
        self._client = client
        self._settings = settings
        self._catalog = catalog
        self._shadowing = Shadowing(Comparisons(client, settings.key_prefix))
        self._queues: dict[tuple[str, int, bool], RequestQueue] = {}
        self._making = Lock()

    def ask(
        self,
        spec: ModelSpec,
        inputs: tuple[Tensor, ...],
        outputs: tuple[str, ...] = (),
        options: RequestOptions = DEFAULT_OPTIONS,
        *,
        named: bool = False,
    ) -> Answered:
        """Push one request and wait for its answer; raises what either raises.

        Should the version leave meanwhile, its successor is asked, unless the version was `named`.
        """
        for _ in range(MAX_SUCCESSORS):
            try:
                result = self.wait(spec, self.push(spec, inputs, outputs, options))
            except VersionRetired:
                spec = self.successor(spec, named=named)
            else:
                self.copy_to_shadow(spec, inputs, outputs, options, result)
                return Answered(spec, result)
        return Answered(spec, self.wait(spec, self.push(spec, inputs, outputs, options)))

    def copy_to_shadow(
        self,
        spec: ModelSpec,
        inputs: tuple[Tensor, ...],
        outputs: tuple[str, ...],
        options: RequestOptions,
        result: InferResult,
    ) -> None:
        """Ask the model's shadow the same, if it has one, and have the answers compared."""
        shadow = self._catalog.shadow_of(spec)
        if shadow is None or not shadow.answers_as(spec):
            return
        lowest = options._replace(
            priority=shadow.levels if shadow.priority_levels else 0, client=None
        )
        push = partial(self.push, shadow, inputs, outputs, lowest)
        self._shadowing.copy(shadow.key, spec.version, result, push)

    def successor(self, spec: ModelSpec, *, named: bool = False) -> ModelSpec:
        """Return what serves in the place of a version that left.

        Raises VersionRetired when that takes other inputs than the request was checked for, and
        UnknownModel when nothing serves in its place.
        """
        self._catalog.refresh()
        found = self._catalog.serving(spec.name, spec.version if named else None)
        if not found.answers_as(spec):
            raise VersionRetired.default()
        if found.key == spec.key:  # it is back, or not everybody knows yet that it left
            time.sleep(SUCCESSOR_SECONDS)
        return found

    def push(
        self,
        spec: ModelSpec,
        inputs: tuple[Tensor, ...],
        outputs: tuple[str, ...] = (),
        options: RequestOptions = DEFAULT_OPTIONS,
    ) -> PendingRequest:
        """Push one request: its rows are the first dimension of its first input.

        Raises QueueFull when too many wait in this process.
        """
        queue = self._queue(spec)
        waiting = sum([other.waiting for other in list(self._queues.values())])
        if waiting >= self._settings.max_waiting:
            raise self._with_retry_after(spec, QueueFull.with_waiting(waiting))
        request = self._request(queue.new_id(), spec, inputs, outputs, options)
        return queue.push(request, options.client)

    def wait(self, spec: ModelSpec, waiting: PendingRequest) -> InferResult:
        """Wait for a model's answer to a request; raises what `PendingRequest.wait` raises."""
        try:
            return waiting.wait()
        except QueueFull as error:
            raise self._with_retry_after(spec, error) from None

    def submit(
        self,
        request_id: str,
        spec: ModelSpec,
        inputs: tuple[Tensor, ...],
        outputs: tuple[str, ...],
        options: RequestOptions,
        *,
        named: bool = False,
    ) -> ModelSpec:
        """Store a request for whose answer nobody waits; raises QueueFull, RedisUnavailable.

        Returns the version that it was stored for, as `ask` does.
        """
        for last in range(MAX_SUCCESSORS + 1):
            request = self._request(request_id, spec, inputs, outputs, options)
            try:
                self.detached(spec).submit(request)
            except QueueFull as error:
                raise self._with_retry_after(spec, error) from None
            except VersionRetired:
                if last == MAX_SUCCESSORS:
                    raise
                spec = self.successor(spec, named=named)
            else:
                break
        return spec

    def detached(self, spec: ModelSpec) -> Detached:
        """Return the model's requests that nobody waits for."""
        return Detached(self._client, self._keys(spec), self._limits(spec))

    def timeout_seconds(self, spec: ModelSpec, options: RequestOptions) -> float:
        """Return how long a request under `options` may wait."""
        return options.deadline_seconds(spec, self._settings.request_timeout_seconds)

    def _request(
        self,
        request_id: str,
        spec: ModelSpec,
        inputs: tuple[Tensor, ...],
        outputs: tuple[str, ...],
        options: RequestOptions,
    ) -> InferRequest:
        return InferRequest(
            request_id,
            inputs[0].shape[0] if spec.batched else 1,
            inputs,
            outputs,
            self.timeout_seconds(spec, options),
            spec.signature(inputs),
            options.level(spec),
            options.parameters,
            options.queue_timeout_seconds if spec.queue_policies else 0.0,
        )

    def _with_retry_after(self, spec: ModelSpec, error: QueueFull) -> QueueFull:
        """Say when half of what waits will be gone, at the rate the model is answering now."""
        rate = self._catalog.drain_rate(spec.key)
        if rate > 0:
            seconds = math.ceil(error.waiting / rate / 2)
            error.retry_after_seconds = min(max(1, seconds), LONGEST_RETRY_AFTER_SECONDS)
        return error

    def _keys(self, spec: ModelSpec) -> QueueKeys:
        return QueueKeys(self._settings.key_prefix, spec.key, spec.levels, cached=spec.cached)

    def _limits(self, spec: ModelSpec) -> Limits:
        return Limits.of(spec, self._settings)

    def _queue(self, spec: ModelSpec) -> RequestQueue:
        name = (spec.key, spec.levels, spec.cached)  # a restart may bring another config
        queue = self._queues.get(name)
        if queue is None:
            with self._making:
                queue = self._queues.get(name)
                if queue is None:
                    queue = RequestQueue(self._client, self._keys(spec), self._limits(spec))
                    self._queues[name] = queue
        return queue
