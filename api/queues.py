"""The request queues of all models, and the two steps every inference route takes with them."""

from __future__ import annotations

import redis

from shared.messages import InferRequest, InferResult, Tensor
from shared.model_spec import ModelSpec
from shared.request_queue import QueueKeys, RequestQueue, Waiting
from shared.settings import Settings


class Queues:
    """One RequestQueue per model version, made at its first request."""

    def __init__(self, client: redis.Redis, settings: Settings) -> None:
        """Open connections like `client`'s, at a model's first request."""
        self._client = client
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
        queue = self._queue(spec.key)
        request = InferRequest(
            queue.new_id(),
            inputs[0].shape[0] if spec.batched else 1,
            inputs,
            outputs,
            self._settings.request_timeout_seconds,
            spec.signature(inputs),
        )
        return queue.push(request)

    def _queue(self, model_key: str) -> RequestQueue:
        queue = self._queues.get(model_key)
        if queue is None:
            queue = self._queues[model_key] = RequestQueue(
                self._client,
                QueueKeys(self._settings.key_prefix, model_key),
                max_queue_size=self._settings.max_queue_size,
            )
        return queue
