"""Asks other models on behalf of a Triton Python model (BLS), through their queues.

A model's request to another is like a client's: it waits on that model's queue, shares its batches,
and is answered by whichever instance takes it. Meanwhile the batch that asks is not done.
"""

from __future__ import annotations

import json
from threading import Lock

import numpy as np

from shared.errors import BadRequest, FerryError, Unsupported
from shared.messages import InferRequest, InferResult, Tensor
from shared.model_spec import EnsembleStep, ModelSpec
from shared.registry.catalog import Catalog
from shared.registry.registry import Registry
from shared.request_queue.api_end import RequestQueue
from shared.request_queue.keys import QueueKeys
from shared.wire.client import connect
from worker.backends.triton_requests import (
    InferenceRequest,
    InferenceResponse,
    TritonError,
    TritonTensor,
)
from worker.ensembles.step_tensors import check_asked, step_inputs
from worker.job import InstanceJob

USUAL_TIMEOUT_SECONDS = 30.0
"""Given to a request for which the model sets no time-out."""
CODE_OF_STATUS = {
    400: TritonError.INVALID_ARG, 404: TritonError.NOT_FOUND, 501: TritonError.UNSUPPORTED,
    503: TritonError.UNAVAILABLE,
}  # fmt: skip
"""The code that a model is told, by the status that a client would get."""


class OtherModels:
    """The queues of the models that one instance's model asks, each opened when it first does."""

    def __init__(self, job: InstanceJob) -> None:
        """Ask for the model of `job`; opens nothing yet."""
        self._job = job
        self._client = connect(job.redis_url, job.key_prefix)
        self._catalog = Catalog(Registry(self._client, job.key_prefix))
        self._queues: dict[str, RequestQueue] = {}
        self._lock = Lock()

    def ask(self, request: InferenceRequest) -> InferenceResponse:
        """Return the other model's answer, or the error that it is; for any thread."""
        try:
            result = self._catalog.by_current(lambda: self._answer(request))
        except FerryError as error:
            code = CODE_OF_STATUS.get(error.status, TritonError.INTERNAL)
            said = f"model '{request.model_name()}': {error.message}"
            return InferenceResponse(error=TritonError(said, code))
        outputs = [TritonTensor(each.name, np.array(each.array())) for each in result.outputs]
        return InferenceResponse(outputs)

    def _answer(self, request: InferenceRequest) -> InferResult:
        name, version = request.model_name(), request.model_version()
        if name == self._job.spec.name:
            raise Unsupported("a model cannot ask itself, its instance is busy with the request")
        model = self._catalog.serving(name, str(version) if version > 0 else None)
        given = {each.name(): Tensor.of(each.name(), each.as_numpy()) for each in request.inputs()}
        outputs = tuple(request.requested_output_names())
        step = EnsembleStep(
            model=name,
            input_map={each: each for each in given},
            output_map={each: each for each in outputs},
        )
        try:
            check_asked(step, model)
            inputs = step_inputs(model, step, model, given)
        except FerryError as error:  # whatever does not fit is what the model asked with
            raise BadRequest(error.message) from error
        queue = self._queue(model)
        return queue.push(
            InferRequest(
                queue.new_id(),
                inputs[0].shape[0] if model.batched and inputs else 1,
                inputs,
                outputs,
                request.timeout() / 1e6 or USUAL_TIMEOUT_SECONDS,
                model.signature(inputs),
                model.queue_of(model.default_priority_level) if model.priority_levels else 1,
                json.loads(request.parameters()),
                named=version > 0,
            )
        ).wait()

    def _queue(self, model: ModelSpec) -> RequestQueue:
        with self._lock:
            if model.key not in self._queues:
                limits = self._job.limits.of_model(model)
                keys = QueueKeys.of(model, self._job.key_prefix)
                self._queues[model.key] = RequestQueue(self._client, keys, limits)
            return self._queues[model.key]
