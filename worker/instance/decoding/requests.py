"""A claimed batch's messages become requests whose arrays are there."""

from __future__ import annotations

import logging

from shared.errors import BadMessage, BadRequest
from shared.messages import InferResult, Tensor
from shared.model_spec import ModelSpec
from shared.request_queue.claimed import Claimed
from worker.instance.batch_parts import DecodedRequest
from worker.instance.health.self_check import SelfCheck
from worker.tracing import BATCH_IN_HAND

log = logging.getLogger(__name__)


def decode_all(
    claimed: list[Claimed],
    spec: ModelSpec,
    instance: str,
    health: SelfCheck,
    results: dict[str, bytes],
) -> tuple[list[DecodedRequest], list[Claimed]]:
    """Return those to run, and those of no rows, which get their `results` as bad ones do."""
    requests, empty = [], list[Claimed]()
    for item in claimed:
        try:
            request = decode(item, spec)
            if health.vocabulary is not None:
                health.vocabulary.check(request.arrays)
            requests.append(request)
        except BadMessage as error:
            log.warning("request %s: %s, it is answered so", item.id, error.message)
            results[item.id] = InferResult(error=error).encode()
        except BadRequest as error:
            results[item.id] = InferResult(error=error).encode()
        except _NoRows as found:
            empty.append(item)
            timings = item.timings(0.0, 0.0, 0, instance)
            results[item.id] = InferResult(found.outputs, timings).encode()
    return requests, empty


class _NoRows(Exception):
    """A request brings no rows; its answer is there, without the model."""

    def __init__(self, outputs: tuple[Tensor, ...]) -> None:
        """Carry the answer's outputs."""
        super().__init__()
        self.outputs = outputs


def decode(item: Claimed, spec: ModelSpec) -> DecodedRequest:
    """Decode one request; raises BadMessage, also when it says it has other rows than it brings.

    Raises _NoRows for one that brings none.
    """
    request = item.request()
    if request.traceparent and (spans := BATCH_IN_HAND.get()) is not None:
        spans.take(item, request.traceparent)
    for tensor in request.inputs:
        if spec.batched and tensor.shape[:1] != (item.rows,):
            if not any(each.shape[0] for each in request.inputs):
                raise _NoRows(spec.answer_to_no_rows(request.outputs))
            raise BadMessage(
                f"input {tensor.name!r}: shape {list(tensor.shape)} does not have {item.rows} rows"
            )
    return DecodedRequest(item, request, {tensor.name: tensor.array() for tensor in request.inputs})
