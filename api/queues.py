"""The request queues of all models, and the two steps every inference route takes with them."""

from __future__ import annotations

from secrets import token_hex

import redis

from shared.messages import InferRequest, InferResult, Tensor
from shared.model_spec import ModelSpec
from shared.redis_connection import Wires
from shared.request_queue import QueueKeys, RequestQueue, Waiting
from shared.settings import Settings


class Queues:
    """One RequestQueue per model version, made at its first request."""

    def __init__(self, client: redis.Redis, settings: Settings) -> None:
        """Share one free list of wires among all queues."""
        self._wires = Wires(client)
        self._settings = settings
        self._queues: dict[str, RequestQueue] = {}

    def ask(
        self, spec: ModelSpec, inputs: tuple[Tensor, ...], outputs: tuple[str, ...] = ()
    ) -> InferResult:
        """Push one request and wait for its answer; raises what either raises."""
        return self.push(spec, inputs, outputs).wait()

    def push(
        self, spec: ModelSpec, inputs: tuple[Tensor, ...], outputs: tuple[str, ...] = ()
    ) -> Waiting:
        """Push one request: its rows are the first dimension of its first input."""
        request = InferRequest(
            token_hex(16),
            inputs[0].shape[0] if spec.batched else 1,
            inputs,
            outputs,
            self._settings.request_timeout_seconds,
            spec.signature(inputs),
        )
        return self._queue(spec.key).push(request)

    def _queue(self, model_key: str) -> RequestQueue:
        queue = self._queues.get(model_key)
        if queue is None:
            queue = self._queues[model_key] = RequestQueue(
                self._wires,
                QueueKeys(self._settings.key_prefix, model_key),
                max_queue_size=self._settings.max_queue_size,
                result_ttl_seconds=self._settings.result_ttl_seconds,
            )
        return queue
