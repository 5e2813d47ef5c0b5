"""The queues of the step models, to which an ensemble's process pushes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import redis

from shared.errors import (
    BadModel,
    BadModelOutput,
    BadRequest,
    ModelNotReady,
    RequestExpired,
    UnknownModel,
)
from shared.messages import InferRequest, Parameters, Tensor
from shared.model_spec import EnsembleStep, ModelSpec
from shared.registry.catalog import Catalog
from shared.request_queue.api_end import PendingRequest, RequestQueue
from shared.request_queue.claimed import MAX_RESULT_BYTES
from shared.request_queue.keys import QueueKeys
from shared.request_queue.limits import Limits

Answer = TypeVar("Answer")


class StepRequest(NamedTuple):
    """The request of one step to its model; `deadline` is monotonic seconds.

    `queue_timeout_seconds` is the client's `timeout`: of a model with queue policies it is for
    these to judge, of any other it bounds this step, as over the API; 0 without.
    """

    model: ModelSpec
    inputs: tuple[Tensor, ...]
    outputs: tuple[str, ...]
    deadline: float
    priority: int
    parameters: Parameters
    named: bool
    queue_timeout_seconds: float = 0.0
    owner: str = ""
    known_as: str = ""
    traceparent: str = ""


class StepQueues:
    """One RequestQueue per step model's version, made when it is first asked."""

    def __init__(self, client: redis.Redis, prefix: str, limits: Limits, catalog: Catalog) -> None:
        """Open connections like `client`'s; `limits` are those of any model, without policies."""
        self._client = client
        self._prefix = prefix
        self._limits = limits
        self._catalog = catalog
        self._queues: dict[str, RequestQueue] = {}
        self._held: set[str] = set()

    def model(self, step: EnsembleStep) -> ModelSpec:
        """Return the version that answers a step now; raises ModelNotReady.

        Also for a model that is not there at all: the one that the client asked for is there.
        """
        try:
            return self._catalog.serving(step.model, step.version or None)
        except UnknownModel as error:
            raise ModelNotReady(error.message) from error

    def by_current(self, attempt: Callable[[], Answer]) -> Answer:
        """Return what `attempt` returns; again where a step does not fit by an old copy."""
        misfits = (BadRequest, BadModel, BadModelOutput)
        return self._catalog.by_current(attempt, misfits)

    def check_serves(self, model: ModelSpec, *, named: bool) -> None:
        """Raise VersionRetired, as its queue would, when a step goes to another version by now."""
        self._catalog.check_serves(model, named=named)

    def refresh(self) -> None:
        """Go by what is served from now on: a queue has refused a step."""
        self._catalog.refresh()

    def push(self, request: StepRequest, then: Callable[[], None]) -> PendingRequest:
        """Ask a step's model at the next `release`; `then` is called once it is answered.

        That is done by another thread, or by `release` itself when Redis is away.

        Raises RequestExpired, or BadModelOutput for tensors that are too large to be handed on.
        """
        model, inputs, outputs, deadline, priority, parameters, named, wish, *_ = request
        seconds = deadline - time.monotonic()
        if wish and not (model.queue_policies or model.steps):
            seconds, wish = min(seconds, wish), 0.0
        if seconds <= 0:
            raise RequestExpired("Request timeout expired")
        size = sum(len(tensor.data) for tensor in inputs)
        if size > MAX_RESULT_BYTES:
            raise BadModelOutput(
                f"its inputs have {size} bytes, at most {MAX_RESULT_BYTES} can be handed on"
            )
        queue = self._queue(model)
        self._held.add(model.key)
        return queue.hold(
            InferRequest(
                queue.new_id(),
                inputs[0].shape[0] if model.batched and inputs else 1,
                inputs,
                outputs,
                seconds,
                model.signature(inputs),
                priority,
                parameters,
                wish,
                named,
                request.owner,
                request.known_as,
                request.traceparent,
            ),
            then,
        )

    def release(self) -> None:
        """Send the pushed requests, one write for each model."""
        while self._held:
            self._queues[self._held.pop()].release()

    def _queue(self, model: ModelSpec) -> RequestQueue:
        queue = self._queues.get(model.key)
        if queue is None:
            keys = QueueKeys.of(model, self._prefix).with_bulk
            queue = RequestQueue(self._client, keys, self._limits.of_model(model))
            self._queues[model.key] = queue
        return queue


def step_level(ensemble: ModelSpec, level: int, model: ModelSpec) -> int:
    """Return the step's queue for a request on the ensemble's queue `level`.

    A request without a priority has the ensemble's default, and gets the step's.
    """
    if level == ensemble.bulk_queue:
        return model.bulk_queue
    if not model.priority_levels:
        return 1
    if level == ensemble.queue_of(ensemble.default_priority_level):
        return model.queue_of(model.default_priority_level)
    return model.queue_of(min(ensemble.level_of(level), model.priority_levels))
