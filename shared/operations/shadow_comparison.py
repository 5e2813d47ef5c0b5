"""Comparison of a shadow's answers with the serving version's, counted in Redis."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
from redis import Redis

from shared.datatypes import Array
from shared.errors import BadMessage
from shared.messages import InferResult, Tensor
from shared.operations.disagreements import Disagreement
from shared.registry.keys import RegistryKeys
from shared.request_queue.keys import RETIRED_COUNTS_SECONDS
from shared.wire.client import asking, milliseconds
from shared.wire.scripts import script_text


class Comparison(NamedTuple):
    """Sums over the requests that a shadow got a copy of.

    `failed` ones were answered with an error by the shadow, or not in time. Besides, `skipped` ones
    were not sent: too many came, or its queue was full. Of the others `row_count` rows were
    compared: `agreed_count` of them have the same highest element in the first output that has
    numbers (the top-1 class), and no number of any output differs by more than
    `max_abs_difference`. The seconds are those from push to answer: queue, batch, forward pass.
    """

    request_count: float = 0.0
    failed_count: float = 0.0
    skipped_count: float = 0.0
    row_count: float = 0.0
    agreed_count: float = 0.0
    max_abs_difference: float = 0.0
    served_seconds: float = 0.0
    shadow_seconds: float = 0.0


class Comparisons:
    """Reads and writes the key; every method raises RedisUnavailable."""

    def __init__(self, client: Redis, prefix: str) -> None:
        """Use `client`, naming keys under `prefix`."""
        self._client = client
        self._keys = RegistryKeys(prefix)

    def add(self, shadow_key: str, version: str, counted: Comparison) -> None:
        """Add the counts of one or several requests."""
        sums = counted._asdict()
        highest = sums.pop("max_abs_difference")
        pairs = [item for name, amount in sums.items() if amount for item in (name, amount)]
        client: Any = self._client
        key, script = self._keys.compared(shadow_key, version), script_text("compare")
        ttl_ms = milliseconds(RETIRED_COUNTS_SECONDS)
        asking(lambda: client.eval(script, 1, key, ttl_ms, highest, *pairs))

    def keep(self, shadow_key: str, version: str, found: Sequence[Disagreement], most: int) -> None:
        """Keep disagreements, and of those that were kept the newest, `most` together."""
        key = self._keys.disagreed(shadow_key, version)
        with self._client.pipeline() as opened:
            pipeline: Any = opened
            pipeline.lpush(key, *(each.encode() for each in found)).ltrim(key, 0, most - 1)
            pipeline.pexpire(key, milliseconds(RETIRED_COUNTS_SECONDS))
            asking(pipeline.execute)

    def kept(self, shadow_key: str, version: str) -> list[Disagreement]:
        """Return what is kept, newest first, but what another release wrote."""
        key = self._keys.disagreed(shadow_key, version)
        found = []
        for raw in asking(lambda: self._client.lrange(key, 0, -1)):
            with suppress(BadMessage):
                found.append(Disagreement.decode(raw))
        return found

    def read(self, shadow_key: str, version: str) -> Comparison:
        """Return the sums so far, zeros when there are none."""
        found = asking(lambda: self._client.hgetall(self._keys.compared(shadow_key, version)))
        return Comparison(**{name.decode(): float(value) for name, value in found.items()})

    def of_model(self, name: str) -> dict[tuple[str, str], Comparison]:
        """Return the comparisons of a model's shadows: (shadow key, version) -> comparison."""
        pattern = self._keys.compared(f"{name}/*", "*")
        keys = asking(lambda: list(self._client.scan_iter(match=pattern, count=1000)))
        found = {}
        for key in sorted(each.decode() for each in keys):
            _, _, rest = key.partition(":{")
            shadow_key, _, version = rest.partition("}:compared:")
            found[shadow_key, version] = self.read(shadow_key, version)
        return found

    def forget(self, shadow_key: str, version: str) -> None:
        """Begin anew."""
        keys = (self._keys.compared, self._keys.disagreed)
        asking(lambda: self._client.delete(*(key(shadow_key, version) for key in keys)))


def summed(found: Sequence[Comparison]) -> Comparison:
    """Return the sums of comparisons, and the largest of their differences."""
    total = Comparison(*(sum(column) for column in zip(*found, strict=True)))
    return total._replace(max_abs_difference=max(each.max_abs_difference for each in found))


def compared(served: InferResult, shadow: InferResult) -> Comparison:
    """Compare two answers to one request; their outputs are matched by name.

    Outputs of other shapes differ by infinity, those of strings by infinity unless they are equal.
    """
    pairs = _pairs(served, shadow)
    agreed = _agreement(pairs)
    return Comparison(
        request_count=1,
        row_count=len(agreed),
        agreed_count=int(agreed.sum()),
        max_abs_difference=max((_difference(*pair) for pair in pairs), default=0.0),
        served_seconds=_seconds(served),
        shadow_seconds=_seconds(shadow),
    )


def differing_row(served: InferResult, shadow: InferResult) -> int | None:
    """Return the first row that does not agree, None where all do."""
    agreed = _agreement(_pairs(served, shadow))
    return None if agreed.all() else int(agreed.argmin())


def _pairs(served: InferResult, shadow: InferResult) -> list[tuple[Tensor, Tensor]]:
    others = {tensor.name: tensor for tensor in shadow.outputs}
    return [(tensor, others[tensor.name]) for tensor in served.outputs if tensor.name in others]


def _agreement(pairs: list[tuple[Tensor, Tensor]]) -> Array:
    """Return of each row of the first output that has numbers whether both agree in top-1."""
    for ours, theirs in pairs:
        if ours.datatype == "BYTES":
            continue
        a, b = ours.array(), theirs.array()
        if a.ndim == 0 or a.size == 0:
            return np.array([a.shape == b.shape and bool(np.all(a == b))])
        if a.shape != b.shape or theirs.datatype == "BYTES":
            return np.zeros(len(a), bool)
        a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
        if a.shape[1] == 1:
            return np.isclose(a[:, 0], b[:, 0])
        return np.asarray(a.argmax(axis=1) == b.argmax(axis=1))
    same = all(ours.data == theirs.data for ours, theirs in pairs)
    return np.array([bool(pairs) and same])


def _difference(ours: Tensor, theirs: Tensor) -> float:
    if "BYTES" in (ours.datatype, theirs.datatype) or ours.shape != theirs.shape:
        return 0.0 if (ours.shape, ours.data) == (theirs.shape, theirs.data) else float("inf")
    a, b = ours.array().astype(np.float64), theirs.array().astype(np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    difference = np.abs(np.where(same, 0.0, a - b))
    return float(np.nan_to_num(difference, nan=np.inf).max(initial=0.0))


def _seconds(result: InferResult) -> float:
    timings = result.timings
    return timings.queue_seconds + timings.batch_wait_seconds + timings.compute_seconds
