"""Answers one claimed batch: stack, one forward pass, split, each request on its own."""

from __future__ import annotations

import logging
import time
from itertools import accumulate

from shared.datatypes import Array, datatype_of, to_bytes
from shared.errors import BadMessage, BadModelOutput, FerryError, ModelFailed
from shared.messages import InferResult, Tensor, Timings
from shared.model_spec import ModelSpec
from shared.request_queue.claimed import MAX_RESULT_BYTES, Answers, Claimed
from shared.request_queue.model_statistics import Pass, encode_costs
from worker.backends.base import Backend
from worker.instance.each import answers_each, run_each
from worker.instance.stacking import stack
from worker.instance.trip import Passenger, Trip, check_outputs

log = logging.getLogger(__name__)

MAX_RESULTS_BYTES = 512 * 2**20
"""Of a batch's results, which one command hands out: Redis hangs up above a gigabyte."""


def answer_batch(
    claimed: list[Claimed], spec: ModelSpec, backend: Backend, instance: str
) -> Answers:
    """Return one encoded `InferResult` per claimed request, in order (stops 4 and 6).

    Never raises for anything a request or the model does: a body that cannot be decoded, or a
    request on which the model raises, is answered with its own error while its neighbours get
    their rows. So is one whose result is too large for Redis. Next stop: `WorkQueue.publish`.
    """
    claimed_at = time.monotonic()
    results: dict[str, bytes] = {}
    passengers = []
    for item in claimed:
        try:
            passengers.append(_board(item, spec))
        except BadMessage as error:
            log.warning("request %s cannot be decoded, answering it with the error", item.id)
            results[item.id] = InferResult(error=error).encode()
    trip = Trip(spec, backend, instance, claimed_at, time.monotonic() - claimed_at, [])
    if passengers:
        results.update(_answer(passengers, trip))
    refused = _refuse_oversized(results, spec)
    passes = _without(refused, trip.passes) if refused else trip.passes
    costs = encode_costs(claimed, passes, time.monotonic() - claimed_at)
    return Answers([results[item.id] for item in claimed], costs)


def _board(item: Claimed, spec: ModelSpec) -> Passenger:
    """Decode one request; raises BadMessage, also when it says it has other rows than it brings."""
    request = item.request()
    for tensor in request.inputs:
        if spec.batched and tensor.shape[:1] != (item.rows,):
            raise BadMessage(
                f"input {tensor.name!r}: shape {list(tensor.shape)} does not have {item.rows} rows"
            )
    return Passenger(item, request, {tensor.name: tensor.array() for tensor in request.inputs})


def _answer(passengers: list[Passenger], trip: Trip) -> dict[str, bytes]:
    """Run the passengers in one forward pass; when it raises, each half on its own."""
    failure: FerryError
    try:
        if answers_each(trip.backend):
            return run_each(passengers, trip.backend, trip)
        return _run(passengers, trip)
    except BadModelOutput as error:
        log.error("%s: %s; the batch of %d is answered so", trip.spec.key, error, len(passengers))
        result = InferResult(error=error).encode()
        return {passenger.claimed.id: result for passenger in passengers}
    except Exception as error:  # a border: whatever a model raises, only its request fails
        log.warning(
            "%s: a batch of %d raised %s: %s; %s",
            trip.spec.key, len(passengers), type(error).__name__, error,
            "running its halves" if len(passengers) > 1 else "it is answered so",
            exc_info=log.isEnabledFor(logging.DEBUG),
        )  # fmt: skip
        failure = ModelFailed(f"{type(error).__name__}: {error}")
    # subtle: the except block is left first, its traceback would keep the batch's memory alive.
    if len(passengers) == 1:
        return {passengers[0].claimed.id: InferResult(error=failure).encode()}
    middle = len(passengers) // 2
    return _answer(passengers[:middle], trip) | _answer(passengers[middle:], trip)


def _refuse_oversized(results: dict[str, bytes], spec: ModelSpec) -> set[str]:
    """Put errors in the place of results that cannot be handed out; returns whose they were."""
    refused, taken = set[str](), 0
    if sum(map(len, results.values())) <= min(MAX_RESULT_BYTES, MAX_RESULTS_BYTES):
        return refused
    for request_id, result in results.items():
        size, limit = len(result), min(MAX_RESULT_BYTES, MAX_RESULTS_BYTES - taken)
        if size <= limit:
            taken += size
            continue
        said = f"the answer has {size} bytes, at most {MAX_RESULT_BYTES} can be handed out"
        if size <= MAX_RESULT_BYTES:
            said += f", and {MAX_RESULTS_BYTES} with its batch, whose others have {taken}"
        log.error("%s: request %s: %s; it is answered so", spec.key, request_id, said)
        results[request_id] = InferResult(error=BadModelOutput(said)).encode()
        refused.add(request_id)
    return refused


def _without(refused: set[str], passes: list[Pass]) -> list[Pass]:
    """Leave requests out of their passes, so that they are counted as failed."""
    left = [
        one._replace(claimed=[item for item in one.claimed if item.id not in refused])
        for one in passes
    ]
    return [one for one in left if one.claimed]


def _run(passengers: list[Passenger], trip: Trip) -> dict[str, bytes]:
    spec, boarded = trip.spec, time.monotonic()
    pixels = frozenset([item.name for item in passengers[0].request.inputs if item.pixels])
    inputs = stack([passenger.arrays for passenger in passengers], spec)
    started = time.monotonic()
    outputs = trip.backend.forward(inputs, pixels)
    computed = time.monotonic()
    compute_seconds = computed - started
    counts = [passenger.claimed.rows for passenger in passengers]
    rows = sum(counts)
    check_outputs(outputs, spec, rows)
    tensors = {
        declared.name: split(declared.name, outputs[declared.name], counts, batched=spec.batched)
        for declared in spec.outputs
    }
    results = {}
    for index, (item, request, _) in enumerate(passengers):
        timings = Timings(
            item.queue_seconds, started - trip.claimed_at, compute_seconds,
            rows, item.attempts, trip.instance,
        )  # fmt: skip
        wanted = request.outputs or tensors
        answer = InferResult(tuple([tensors[name][index] for name in wanted]), timings)
        results[item.id] = answer.encode()
    input_seconds = trip.decode_seconds + started - boarded
    output_seconds = time.monotonic() - computed
    items = [passenger.claimed for passenger in passengers]
    trip.passes.append(Pass(items, rows, input_seconds, compute_seconds, output_seconds))
    return results


def split(name: str, array: Array, counts: list[int], *, batched: bool) -> list[Tensor]:
    """Return one tensor per request of a batch whose requests have `counts` rows each.

    Numbers are turned into bytes once for the whole batch.
    """
    if not batched or len(counts) == 1:
        return [Tensor.of(name, array)] * len(counts)
    ends = list(accumulate(counts))
    if array.dtype.kind in "OSU":
        parts = zip(ends, counts, strict=True)
        return [Tensor.of(name, array[end - count : end]) for end, count in parts]
    datatype, shape, data = datatype_of(array), array.shape[1:], to_bytes(array)
    width = len(data) // len(array)
    return [
        Tensor(name, datatype, (count, *shape), data[(end - count) * width : end * width])
        for end, count in zip(ends, counts, strict=True)
    ]
