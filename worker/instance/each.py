"""Runs a batch on a model that sees its requests one by one, and may fail some of them (stop 5)."""

from __future__ import annotations

import logging
import time
from typing import TypeGuard

from shared.datatypes import Array
from shared.errors import BadModelOutput, FerryError
from shared.messages import InferResult, Tensor, Timings
from shared.model_spec import ModelSpec
from shared.request_queue.model_statistics import Pass
from worker.backends.base import Backend, EachBackend, Question
from worker.instance.trip import Passenger, Trip, check_outputs

log = logging.getLogger(__name__)


def answers_each(backend: Backend) -> TypeGuard[EachBackend]:
    """Tell whether the requests of a batch stay apart; for every batch, so no `isinstance`."""
    return hasattr(backend, "answer_each")


def run_each(passengers: list[Passenger], backend: EachBackend, trip: Trip) -> dict[str, bytes]:
    """Return one encoded result per passenger; raises what the model raises for all of them.

    It is one pass of all rows. The requests that the model fails are in no pass: counted as failed.
    """
    pixels = frozenset(item.name for item in passengers[0].request.inputs if item.pixels)
    questions = [
        Question(item.id, arrays, request.outputs, request.parameters)
        for item, request, arrays in passengers
    ]
    started = time.monotonic()
    answers = backend.answer_each(questions, pixels)
    computed = time.monotonic()
    if len(answers) != len(passengers):
        raise BadModelOutput(f"{len(answers)} answers to {len(passengers)} requests")
    rows = sum(passenger.claimed.rows for passenger in passengers)
    results, served = {}, []
    for passenger, answer in zip(passengers, answers, strict=True):
        item = passenger.claimed
        timings = Timings(
            item.queue_seconds, started - trip.claimed_at, computed - started,
            rows, item.attempts, trip.instance,
        )  # fmt: skip
        result = _result(passenger, answer, timings, trip.spec)
        results[item.id] = result.encode()
        if result.error is None:
            served.append(item)
    output_seconds = time.monotonic() - computed
    if served:
        compute = computed - started
        trip.passes.append(Pass(served, rows, trip.decode_seconds, compute, output_seconds))
    return results


def _result(
    passenger: Passenger, answer: dict[str, Array] | FerryError, timings: Timings, spec: ModelSpec
) -> InferResult:
    """Return one request's result: its tensors, or the error it alone is answered with."""
    if isinstance(answer, FerryError):
        return InferResult(error=answer)
    wanted = passenger.request.outputs
    try:
        check_outputs(answer, spec, passenger.claimed.rows, wanted)
    except BadModelOutput as error:
        log.error("%s: request %s: %s; it is answered so", spec.key, passenger.claimed.id, error)
        return InferResult(error=error)
    names = wanted or [declared.name for declared in spec.outputs]
    return InferResult(tuple([Tensor.of(name, answer[name]) for name in names]), timings)
