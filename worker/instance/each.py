"""Runs a batch on a model that sees its requests one by one, and may fail some of them."""

from __future__ import annotations

import logging
import time
from typing import TypeGuard

from shared.datatypes import Array
from shared.errors import BadModelOutput, FerryError, ModelFailed
from shared.messages import InferResult, Tensor, Timings
from shared.model_spec import ModelSpec
from worker.backends.base import Backend, EachBackend, RequestTensors
from worker.instance.batch_parts import BatchContext, DecodedRequest
from worker.instance.outputs import fitted_outputs

log = logging.getLogger(__name__)


def answers_each(backend: Backend) -> TypeGuard[EachBackend]:
    """Tell whether the model sees the requests of a batch one by one."""
    # fast: asked for every batch, and `isinstance` of a protocol looks at each of its members
    return hasattr(backend, "answer_each")


def run_each(
    requests: list[DecodedRequest], backend: EachBackend, context: BatchContext
) -> dict[str, bytes]:
    """Return one encoded result per request; raises the model's error for all of them.

    It is one pass of all rows. The requests that the model fails are in no pass: counted as failed.
    """
    started = time.monotonic()
    answers = _answers(requests, backend)
    computed = time.monotonic()
    rows = sum(one.claimed.rows for one in requests)
    waited, compute_seconds = started - context.claimed_at, computed - started
    results, served, failed = {}, [], []
    for one, answer in zip(requests, answers, strict=True):
        timings = one.claimed.timings(waited, compute_seconds, rows, context.instance)
        result = _result(one, answer, timings, context.spec)
        results[one.claimed.id] = context.encoded(one.request, result)
        if result.error is None:
            served.append(one.claimed)
            if context.offer is not None:
                context.offer([one], {each.name: [each] for each in result.outputs})
        elif isinstance(result.error, ModelFailed | BadModelOutput):  # else it is the client's
            failed.append(one.claimed.id)
    if failed:
        context.add_failure(failed)
    if served:
        context.add_pass(served, rows, started, started, computed)
    return results


def answer_alone(request: DecodedRequest, backend: EachBackend) -> dict[str, Array]:
    """Return the outputs of one request; raises the error that it would be answered with."""
    (answer,) = _answers([request], backend)
    if isinstance(answer, FerryError):
        raise answer
    return answer


def _answers(
    requests: list[DecodedRequest], backend: EachBackend
) -> list[dict[str, Array] | FerryError]:
    pixels = frozenset(item.name for item in requests[0].request.inputs if item.pixels)
    tensors = [
        RequestTensors(item.id, arrays, request.outputs, request.parameters)
        for item, request, arrays in requests
    ]
    answers = backend.answer_each(tensors, pixels)
    if len(answers) != len(requests):
        raise BadModelOutput(f"{len(answers)} answers to {len(requests)} requests")
    return answers


def _result(
    one: DecodedRequest, answer: dict[str, Array] | FerryError, timings: Timings, spec: ModelSpec
) -> InferResult:
    """Return one request's result: its tensors, or the error it alone is answered with."""
    if isinstance(answer, FerryError):
        return InferResult(error=answer)
    wanted = one.request.outputs
    try:
        outputs = fitted_outputs(answer, spec, one.claimed.rows, wanted)
    except BadModelOutput as error:
        log.error("%s: request %s: %s; it is answered so", spec.key, one.claimed.id, error.message)
        return InferResult(error=error)
    return InferResult(
        tuple([Tensor.of(name, outputs[name]) for name in wanted or outputs]), timings
    )
