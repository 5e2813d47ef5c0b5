"""The parts of a batch: decoded requests, their rows stacked, outputs split again."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from shared.bodies.worker_bodies import AnswersBeside
from shared.datatypes import NUMPY_TYPES, Array, datatype_of, to_bytes
from shared.errors import BadModelOutput
from shared.messages import InferRequest, InferResult, Tensor
from shared.model_spec import ModelSpec, TensorSpec
from shared.request_queue.claimed import MAX_RESULT_BYTES, Claimed
from shared.request_queue.model_statistics import Pass
from worker.backends.base import Backend
from worker.instance.passes.costs import PassCosts
from worker.tracing import BatchSpans

log = logging.getLogger(__name__)

MAX_RESULTS_BYTES = 512 * 2**20
"""Of a batch's results, which one command hands out: Redis hangs up above a gigabyte."""


class DecodedRequest(NamedTuple):
    """A claimed request whose body could be decoded, with its inputs as arrays."""

    claimed: Claimed
    request: InferRequest
    arrays: Mapping[str, Array]


Offer = Callable[[Sequence[DecodedRequest], Mapping[str, Sequence[Tensor]]], None]
"""Who counts what is asked and answered: requests of a pass, and each one's rows by output."""


class TurnLost(Exception):
    """A batch is not to wait for the device any longer; no model has seen it."""


class DeviceTurn:
    """A batch's time on the device: at once and for as long as it likes, as this one has no other.

    See `worker.instance.passes.lanes` for one that two batches in hand take by turns.
    """

    def take(self) -> None:
        """Wait for the device, unless it is this batch's already; may raise TurnLost at first."""

    def end(self) -> None:
        """Leave the device to another batch."""

    def lose(self) -> None:
        """Have no other batch take the device: nothing works on it any more."""


ALONE = DeviceTurn()


class BatchContext(NamedTuple):
    """The data that the requests of a batch share: model, backend, time of the claim, passes."""

    spec: ModelSpec
    backend: Backend
    instance: str
    claimed_at: float
    decode_seconds: float
    passes: list[Pass]
    failures: list[tuple[int, list[str]]]
    """The ids of requests that failed, and how many passes there were before."""
    spans: BatchSpans | None = None
    offer: Offer | None = None
    costs: PassCosts | None = None
    """What passes of different lengths cost, where that is worth knowing."""
    turn: DeviceTurn = ALONE
    request_count: int = 0
    """Of the requests that could be decoded."""
    answers: AnswersBeside | None = None
    """Where large answers go, if who waits for them looks there."""

    def encoded(self, request: InferRequest, result: InferResult) -> bytes:
        """Encode a request's answer."""
        if self.answers is None or request.whole:
            return result.encode()
        return self.answers.encoded(request.id, result)

    def settled(self, results: dict[str, bytes]) -> dict[str, bytes]:
        """Encode those answers whole that did not get to where they were put; return all."""
        if self.answers is not None:
            self.answers.settle(results)
        return results

    def add_failure(self, failed: list[str]) -> None:
        """Note requests that failed, whoever is at fault."""
        self.failures.append((len(self.passes), failed))

    @property
    def unproven(self) -> list[str]:
        """Return the ids of those that failed since the last pass: nothing has worked since."""
        count = len(self.passes)
        return [each for passes, failed in self.failures if passes == count for each in failed]

    def add_pass(
        self, served: list[Claimed], rows: int, began: float, started: float, computed: float
    ) -> None:
        """Add a forward pass whose answers are just encoded, for the statistics.

        In monotonic seconds: stacking `began`, the model `started`, the model had `computed`.
        """
        if self.spans is not None:
            self.spans.add_pass(served, rows, started, computed)
        input_seconds, output_seconds = started - began, time.monotonic() - computed
        self.passes.append(
            Pass(
                served, rows, self.decode_seconds + input_seconds, computed - started,
                output_seconds,
            )
        )  # fmt: skip


class Stacked(dict[str, Array]):
    """The rows of several requests by input, and the parts that they were stacked of.

    A model may write into the arrays, as one that normalises its input in place. Not into the
    parts: what was decoded is read-only.
    """

    __slots__ = ("_parts", "_spec")

    def __init__(self, parts: Sequence[Mapping[str, Array]], spec: ModelSpec) -> None:
        """Hold no rows yet."""
        self._parts = parts
        self._spec = spec

    def again(self) -> dict[str, Array]:
        """Return the same rows in other arrays, as they were before any model saw them."""
        return stack(self._parts, self._spec)


def stack(parts: Sequence[Mapping[str, Array]], spec: ModelSpec) -> dict[str, Array]:
    """Return the rows of all `parts`, which have the same inputs, in one array for each input.

    Ragged inputs are padded to the longest, as their specs say; strings with empty ones. Masks are
    added where something was padded; those of inputs that were not are `tensor_adapter`'s.
    """
    if len(parts) == 1:
        return dict(parts[0])
    joined = Stacked(parts, spec)
    for name in parts[0]:
        rows = [part[name] for part in parts]
        if name in spec.ragged_names and len({array.shape[1:] for array in rows}) > 1:
            tensor = spec.inputs_by_name[name]
            joined[name] = _padded(rows, tensor)
            joined.update(_masks(spec, tensor, rows, joined[name].shape))
        else:
            joined[name] = np.concatenate(rows)
    return joined


def _padded(parts: Sequence[Array], tensor: TensorSpec) -> Array:
    longest = [max(sizes) for sizes in zip(*(part.shape[1:] for part in parts), strict=True)]
    rows = sum(len(part) for part in parts)
    dtype = parts[0].dtype
    padded = np.full((rows, *longest), b"" if dtype.hasobject else tensor.pad, dtype)
    for part, where in zip(parts, _places(parts, longest, tensor), strict=True):
        padded[where] = part
    return padded


def _places(
    parts: Sequence[Array], longest: Sequence[int], tensor: TensorSpec
) -> list[tuple[slice, ...]]:
    """Return where each part lies in the padded array."""
    places, first = [], 0
    for part in parts:
        starts = [
            full - size if tensor.pad_left else 0
            for full, size in zip(longest, part.shape[1:], strict=True)
        ]
        sizes = zip(starts, part.shape[1:], strict=True)
        own = [slice(start, start + size) for start, size in sizes]
        places.append((slice(first, first + len(part)), *own))
        first += len(part)
    return places


def _masks(
    spec: ModelSpec, tensor: TensorSpec, parts: Sequence[Array], shape: tuple[int, ...]
) -> dict[str, Array]:
    """Return the mask of a padded input, if it has one: 1 where its rows are their own."""
    masks = {}
    for mask in spec.masks:
        if mask.of == tensor.name:
            dimensions = len(mask.tensor.dims) + 1
            array = np.zeros(shape[:dimensions], NUMPY_TYPES[mask.tensor.datatype])
            for where in _places(parts, shape[1:], tensor):
                array[where[:dimensions]] = 1
            masks[mask.tensor.name] = array
    return masks


def split(name: str, array: Array, counts: list[int], *, batched: bool) -> list[Tensor]:
    """Return one tensor per request of a batch whose requests have `counts` rows each."""
    if not batched or len(counts) == 1:
        return [Tensor.of(name, array)] * len(counts)
    ends = list(accumulate(counts))
    if array.dtype.kind in "OSU":  # rows of strings differ in their bytes
        parts = zip(ends, counts, strict=True)
        return [Tensor.of(name, array[end - count : end]) for end, count in parts]
    # fast: numbers become bytes once for the whole batch, each request gets a slice of them
    datatype, shape, data = datatype_of(array), array.shape[1:], to_bytes(array)
    width = len(data) // len(array)
    return [
        Tensor(name, datatype, (count, *shape), data[(end - count) * width : end * width])
        for end, count in zip(ends, counts, strict=True)
    ]


def refuse_oversized(results: dict[str, bytes], spec: ModelSpec) -> set[str]:
    """Put errors in the place of results too large for Redis; returns the ids of their requests."""
    refused, taken = set[str](), 0
    # fast: nearly always they fit together, so each does
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


def without(refused: set[str], passes: list[Pass]) -> list[Pass]:
    """Leave requests out of their passes, so that they are counted as failed."""
    left = [
        one._replace(claimed=[item for item in one.claimed if item.id not in refused])
        for one in passes
    ]
    return [one for one in left if one.claimed]
