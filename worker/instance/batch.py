"""Answers one claimed batch: decode, stack, one forward pass, split, encode (stop 7)."""

from __future__ import annotations

import logging
import time
from functools import partial

from shared.bodies.worker_bodies import WorkerBodies
from shared.errors import (
    BadModelOutput,
    FerryError,
    ModelFailed,
    described,
)  # fmt: skip
from shared.logs import IN_HAND
from shared.messages import InferResult
from shared.model_spec import ModelSpec
from shared.request_queue.claimed import Claimed, EncodedResults
from shared.request_queue.model_statistics import encode_costs
from worker.backends.base import Backend
from worker.instance.batch_parts import (
    ALONE,
    BatchContext,
    DecodedRequest,
    DeviceTurn,
    Offer,
    TurnLost,
    refuse_oversized,
    split,
    stack,
    without,
)
from worker.instance.decoding.decoders import Decoders
from worker.instance.decoding.requests import decode, decode_all
from worker.instance.each import answer_alone, answers_each, run_each
from worker.instance.health.self_check import InstanceLost, SelfCheck
from worker.instance.outputs import fitted_outputs
from worker.instance.passes.by_length import padded_elements, passes_of
from worker.instance.passes.costs import Sharing
from worker.tracing import BATCH_IN_HAND

log = logging.getLogger(__name__)

ALL_TOGETHER = Sharing()


def answer_batch(  # noqa: PLR0913 - what a batch needs, and only the instance calls it
    claimed: list[Claimed],
    spec: ModelSpec,
    backend: Backend,
    instance: str,
    *,
    sharing: Sharing = ALL_TOGETHER,
    health: SelfCheck | None = None,
    offer: Offer | None = None,
    turn: DeviceTurn = ALONE,
    decoders: Decoders | None = None,
    bodies: WorkerBodies | None = None,
) -> EncodedResults:
    """Return one encoded `InferResult` per claimed request, in order (stop 7).

    Never raises for anything a request or the model does: a body that cannot be decoded, or a
    request on which the model raises, is answered with its own error while its neighbours get
    their rows. So is one whose picture the `decoders` find broken, or whose result is too large for
    Redis. `sharing` says who shares a forward
    pass. Raises InstanceLost when it is the instance that failed, by its `health`. What was
    answered is told to `offer`. The model runs in the batch's `turn`, which raises TurnLost if the
    batch is to go back unrun. Large answers go where `bodies` say. Next stop: the `forward` of its
    backend, through `PiecewiseBackend`: `worker.backends.torch_model` for torch.
    """
    claimed_at, health = time.monotonic(), health or SelfCheck(learns=False)
    results: dict[str, bytes] = {}
    requests, empty = decode_all(claimed, spec, instance, health, results)
    if decoders is not None:
        requests, errors = decoders.decoded(requests)
        results.update({each: InferResult(error=errors[each]).encode() for each in errors})
    decode_seconds = time.monotonic() - claimed_at
    context = BatchContext(
        spec, backend, instance, claimed_at, decode_seconds, [], [], BATCH_IN_HAND.get(), offer,
        sharing.costs, turn, len(requests), bodies.answers() if bodies is not None else None,
    )  # fmt: skip
    try:
        for together in passes_of(requests, spec, sharing):
            results.update(_answer(together, context, health))
        if context.failures:
            _tell_apart(context, health)
        if health.known_good is None:
            _learn(context, health, decoders)
    except InstanceLost:
        turn.lose()
        raise
    finally:
        turn.end()
    if empty:
        context.add_pass(empty, 0, claimed_at, claimed_at, claimed_at)
    refused = refuse_oversized(context.settled(results), spec)
    passes = without(refused, context.passes) if refused else context.passes
    figures = encode_costs(claimed, passes, time.monotonic() - claimed_at)
    return EncodedResults([results[item.id] for item in claimed], figures)


def _learn(context: BatchContext, health: SelfCheck, decoders: Decoders | None) -> None:
    """Count a batch of a model of which nothing is known yet, and learn from it what can be."""
    if context.passes or context.failures:
        health.count_failing(has_failed=not context.passes)
    if health.learns and context.passes:
        item = min(context.passes[-1].claimed, key=lambda each: each.size)
        context.turn.take()
        again = partial(_run_again, item, context.spec, context.backend, decoders)
        health.learn(again, [item.id])


def _tell_apart(context: BatchContext, health: SelfCheck) -> None:
    """Raise InstanceLost if it was not the requests that failed, before they are answered so."""
    context.turn.take()
    health.look_at_device([one for _, failed in context.failures for one in failed])
    if unproven := context.unproven:
        health.look_at_model(unproven)


def _run_again(item: Claimed, spec: ModelSpec, backend: Backend, decoders: Decoders | None) -> None:
    """Run a request that was answered once more, for nobody; raises what it would be told."""
    request = decode(item, spec)
    if decoders is not None:
        (request,) = decoders.decoded([request]).requests
    if answers_each(backend):
        outputs = answer_alone(request, backend)
    else:
        pixels = frozenset([each.name for each in request.request.inputs if each.pixels])
        outputs = backend.forward(stack([request.arrays], spec), pixels)
    fitted_outputs(outputs, spec, item.rows, request.request.outputs)


def _answer(
    requests: list[DecodedRequest], context: BatchContext, health: SelfCheck
) -> dict[str, bytes]:
    """Run the requests in one forward pass; when it raises, each half on its own."""
    failure: FerryError
    IN_HAND.set(tuple([one.request.known_as for one in requests]))
    try:
        if answers_each(context.backend):
            context.turn.take()
            return run_each(requests, context.backend, context)
        return _run(requests, context)
    except TurnLost:
        raise
    except BadModelOutput as error:  # the model's fault, no request's: halves are no help
        context.add_failure([one.claimed.id for one in requests])
        said, count = error.message, len(requests)
        log.error("%s: %s; the batch of %d is answered so", context.spec.key, said, count)
        result = InferResult(error=error).encode()
        return {one.claimed.id: result for one in requests}
    except BaseException as error:  # a border: whatever a model raises, only its request fails
        context.turn.take()
        health.look_at_device([one.claimed.id for one in requests])
        said = described(error)
        log.warning(
            "%s: a batch of %d raised %s; %s",
            context.spec.key, len(requests), said,
            "running its halves" if len(requests) > 1 else "it is answered so",
            exc_info=log.isEnabledFor(logging.DEBUG),
        )  # fmt: skip
        failure = ModelFailed(said)
    # subtle: the except block is left first, its traceback would keep the batch's memory alive.
    if len(requests) == 1:
        context.add_failure([requests[0].claimed.id])
        return {requests[0].claimed.id: InferResult(error=failure).encode()}
    middle = len(requests) // 2
    first, second = requests[:middle], requests[middle:]
    return _answer(first, context, health) | _answer(second, context, health)


def _run(requests: list[DecodedRequest], context: BatchContext) -> dict[str, bytes]:
    """Stack, compute, split: one encoded result per request; raises the model's own errors."""
    spec, began = context.spec, time.monotonic()
    pixels = frozenset([item.name for item in requests[0].request.inputs if item.pixels])
    inputs = stack([one.arrays for one in requests], spec)
    stacked = time.monotonic()
    context.turn.take()
    started = time.monotonic()
    outputs = context.backend.forward(inputs, pixels)
    computed = time.monotonic()
    counts = [one.claimed.rows for one in requests]
    rows = sum(counts)
    tensors = {
        name: split(name, array, counts, batched=spec.batched)
        for name, array in fitted_outputs(outputs, spec, rows).items()
    }
    waited, compute_seconds = started - context.claimed_at, computed - started
    if context.costs is not None:
        context.costs.learn(padded_elements(inputs, spec.ragged_names), compute_seconds)
    if len(requests) == context.request_count:
        # subtle: not before what the model returned is copied, it may be the model's own memory.
        context.turn.end()
    results = {}
    for index, (item, request, _) in enumerate(requests):
        timings = item.timings(waited, compute_seconds, rows, context.instance)
        wanted = request.outputs or tensors
        answer = InferResult(tuple([tensors[name][index] for name in wanted]), timings)
        results[item.id] = context.encoded(request, answer)
    began += started - stacked  # waiting for the device is no work
    context.add_pass([one.claimed for one in requests], rows, began, started, computed)
    if context.offer is not None:
        context.offer(requests, tensors)
    return results
