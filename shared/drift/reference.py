"""A version's reference: for each signal fixed bins, and how many of its rows fell into each.

As it stands in `verify.json`:

    {"confidence": {"edges": [0.21, 0.87, ...], "counts": [0, 36, ..., 0], "rows": 360},
     "prediction": {"counts": [36, 37, ...], "rows": 360}, ...}

There is one bin more than edges: below the first, between two, from the last on. Between the ends
lie the reference's tenths. Edges that move with the data would hide its drift. Of classes each has
a bin, of many the most frequent ones, and all others one together.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np

from shared.datatypes import Array
from shared.drift.signals import PREDICTION, SIMILARITY, TINY, similarity

log = logging.getLogger(__name__)

TENTHS = np.linspace(0, 0.9, 10)
LEAST_STEPS = {
    "confidence": 2e-3, "entropy": 5e-3, "similarity": 1e-3, "tokens": 1.0, "length": 1.0,
    "output_length": 1.0,
}  # fmt: skip
"""By signal, the smallest difference that means something: no bin is narrower, and no edge lies
where values are equal. Another device or batch size changes the last digits of an answer.
"""
STEP_OF_SPREAD = 1e-3
FLOAT_STEP = 1e-6
MAX_CLASSES = 64
MAX_SIGNALS = 64
LARGEST_CLASS = 4096
LONGEST_VECTOR = 4096


class Bins(NamedTuple):
    """One signal's bins: rows of the reference in each, and the edges, or the classes, between.

    The bin behind those of the `classes` is that of all others.
    """

    counts: tuple[int, ...]
    edges: tuple[float, ...] = ()
    classes: tuple[int, ...] = ()

    @property
    def rows(self) -> int:
        """Return how many rows the reference has."""
        return sum(self.counts)

    def counted(self, values: Array) -> Array:
        """Return how many values fall into each bin; what is no number is above all."""
        if self.edges:
            places = np.searchsorted(self.edges, values, side="right")
        else:
            known = np.asarray(self.classes)  # in their order
            found = np.minimum(np.searchsorted(known, values), len(known) - 1)
            places = np.where(known[found] == values, found, len(known))
        return np.bincount(places, minlength=len(self.counts))

    def label(self, place: int) -> str:
        """Return how a bin is called."""
        if not self.edges:
            return str(self.classes[place]) if place < len(self.classes) else "others"
        if place == 0:
            return f"below {self.edges[0]:.4g}"
        if place == len(self.edges):
            return f"from {self.edges[-1]:.4g}"
        return f"{self.edges[place - 1]:.4g} to {self.edges[place]:.4g}"


class Reference(NamedTuple):
    """All signals' bins, and the mean direction of answers that are vectors.

    Counts of later rows are kept by the `digest`: those of other bins are no part of them.
    """

    signals: Mapping[str, Bins]
    centre: Array | None
    digest: str
    record: Mapping[str, Any]

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Reference:
        """Read it as it stands in `verify.json`; raises ValueError."""
        if not isinstance(record, Mapping) or not 0 < len(record) <= MAX_SIGNALS:
            raise ValueError(f"expected 1 to {MAX_SIGNALS} signals")
        try:
            signals = {str(name): _bins(name, each) for name, each in record.items()}
            centre = record.get(SIMILARITY, {}).get("centre")
        except (KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(f"no histogram: {error!r}") from error
        plain = {name: [bins.edges, bins.classes, bins.counts] for name, bins in signals.items()}
        digest = blake2b(json.dumps(plain, sort_keys=True).encode(), digest_size=6).hexdigest()
        vector = None if centre is None else np.asarray(centre, np.float32)
        return cls(signals, vector, digest, record)

    def encode(self) -> str:
        """Return its bins as the registry keeps them, for those who count nothing."""
        kept = ("counts", "edges", "others")
        return json.dumps(
            {name: {k: each[k] for k in kept if k in each} for name, each in self.record.items()}
        )


@lru_cache(maxsize=1024)
def reference_of(raw: bytes | None) -> Reference | None:
    """Return a reference as the registry keeps it, None where there is none that can be read."""
    if raw is None:
        return None
    try:
        return Reference.of(json.loads(raw))
    except ValueError as error:
        log.debug("a reference in the registry cannot be read: %s", error)
        return None


def _bins(name: str, record: Mapping[str, Any]) -> Bins:
    counts = tuple(int(count) for count in record["counts"])
    if not counts or min(counts) < 0 or not sum(counts):
        raise ValueError(f"{name}: no rows were counted")
    if name == PREDICTION:
        order = sorted(range(len(counts)), key=lambda number: (-counts[number], number))
        kept = sorted(order if len(order) <= MAX_CLASSES else order[: MAX_CLASSES - 1])
        rest = sum(counts) - sum(counts[number] for number in kept) + int(record.get("others", 0))
        return Bins((*(counts[number] for number in kept), rest), (), tuple(kept))
    edges = [float(edge) for edge in record["edges"]]
    if len(counts) != len(edges) + 1 or len(edges) < 2 or sorted(edges) != edges:  # noqa: PLR2004
        raise ValueError(f"{name}: {len(counts)} counts do not fit {len(edges)} edges")
    if not np.isfinite(edges).all():
        raise ValueError(f"{name}: an edge is no number")
    # Records of earlier releases end at the very largest value, which is not above all.
    edges[-1] = float(np.nextafter(edges[-1], np.inf))
    return Bins(counts, tuple(edges))


def histogram(values: Array, name: str = "") -> dict[str, Any]:
    """Return a signal's histogram as `verify.json` holds it: a tenth of the values in each bin.

    Fewer bins where they would be narrower than differences that mean something. What is no number
    counts as above all.
    """
    finite = values[np.isfinite(values)].astype(np.float64)
    edges = _edges(finite, LEAST_STEPS.get(name.partition(" of ")[0], 0.0))
    places = np.searchsorted(edges, finite, side="right")
    counts = np.bincount(places, minlength=len(edges) + 1)
    counts[-1] += len(values) - len(finite)
    return {"edges": edges, "counts": counts.tolist(), "rows": len(values)}


def _edges(values: Array, least_step: float) -> list[float]:
    if not len(values):
        return [0.0, FLOAT_STEP]
    low, high = np.quantile(values, (0.05, 0.95))
    largest = float(np.abs(values).max())
    step = max(least_step, STEP_OF_SPREAD * float(high - low), FLOAT_STEP * largest, 1e-9)
    # Observed values, and the edge half a step before them: between values, not on one.
    tenths = np.quantile(values, TENTHS, method="higher") - step / 2
    edges = [float(tenths[0])]
    for edge in map(float, tenths[1:]):
        if edge - edges[-1] >= step:
            edges.append(edge)
    top = float(values.max()) + step / 2
    return [*edges, top]


def class_histogram(numbers: Array, count: int) -> dict[str, Any]:
    """Return the histogram of classes, of `count` of them at least; odd numbers are `others`."""
    known = numbers[(numbers >= 0) & (numbers < max(count, LARGEST_CLASS))]
    counts = np.bincount(known, minlength=count).tolist()
    return {"counts": counts, "others": len(numbers) - len(known), "rows": len(numbers)}


def direction_histogram(parts: Sequence[Array]) -> dict[str, Any]:
    """Return the histogram of how like their mean direction vectors are, with that direction.

    Nothing where there are none, or none of one length.
    """
    sizes = {part.shape[1] for part in parts}
    if len(sizes) != 1 or sizes.pop() > LONGEST_VECTOR:
        return {}
    rows = np.concatenate(parts).astype(np.float64)
    rows = rows[np.isfinite(rows).all(axis=1)]
    mean = (rows / (np.linalg.norm(rows, axis=1, keepdims=True) + TINY)).sum(axis=0)
    length = float(np.linalg.norm(mean))
    if length <= TINY:
        return {}
    centre = np.round(mean / length, 6)
    found = histogram(similarity(rows, centre), SIMILARITY)
    return {SIMILARITY: found | {"centre": centre.tolist()}}
