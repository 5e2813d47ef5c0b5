"""What the counts say: how far each signal is from its reference, and whether that is drift."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from redis import Redis

from shared.datatypes import Array
from shared.drift.counts import Counted, DriftCounts
from shared.drift.distances import jensen_shannon, kolmogorov_smirnov, noise_floor, psi
from shared.drift.reference import Bins, Reference, reference_of
from shared.drift.signals import PREDICTION
from shared.model_spec import ModelSpec
from shared.registry.registry import Registry

FEWEST_ROWS = 200
"""Of fewer answers nothing is said."""
LEAST_PSI = 0.1
"""What a smaller PSI says is not worth an alarm, by the usual rule of thumb: < 0.1 none, 0.1 to
0.25 some, > 0.25 much. Source: N. Siddiqi, Credit risk scorecards, 2006.
"""
FALSE_ALARM = 1e-3
"""The chance that a version is said to drift that does not, of all its signals together."""


class SignalDrift(NamedTuple):
    """One signal of a version: `rows` of it against its reference.

    It drifts if its `psi` is above its `limit`: the noise floor of so many rows, LEAST_PSI at
    least. `change` names the bin whose share changed most.
    """

    signal: str
    rows: int
    psi: float
    limit: float
    jensen_shannon: float
    kolmogorov_smirnov: float | None
    change: str

    @property
    def is_enough(self) -> bool:
        """Tell whether so many rows say anything."""
        return self.rows >= FEWEST_ROWS

    @property
    def drifts(self) -> bool:
        """Tell whether it does."""
        return self.is_enough and self.psi > self.limit


class VersionDrift(NamedTuple):
    """What is found of a version that has a reference, by its latest answers."""

    spec: ModelSpec
    reference: Reference
    counted: Counted
    signals: list[SignalDrift]


class LatestDrift:
    """Compares the latest answers of versions with their references, whenever it is asked."""

    def __init__(self, client: Redis, prefix: str, registry: Registry) -> None:
        """Read nothing yet."""
        self._counts = DriftCounts(client, prefix)
        self._registry = registry

    def of(self, versions: Iterable[ModelSpec]) -> list[VersionDrift]:
        """Return what is found of those with a reference; raises RedisUnavailable."""
        references = self._registry.references()
        known = [
            (spec, reference)
            for spec in versions
            if (reference := reference_of(references.get(spec.key))) is not None
        ]
        latest = self._counts.latest([(spec.key, reference) for spec, reference in known])
        return [
            VersionDrift(spec, reference, counted, findings(reference, counted))
            for (spec, reference), counted in zip(known, latest, strict=True)
        ]


def findings(reference: Reference, counted: Counted) -> list[SignalDrift]:
    """Return what is found of each signal that was counted at all."""
    chance = FALSE_ALARM / len(reference.signals)
    return [
        _finding(name, bins, counted[name], chance)
        for name, bins in reference.signals.items()
        if counted[name].sum()
    ]


def _finding(name: str, bins: Bins, counts: Array, chance: float) -> SignalDrift:
    return SignalDrift(
        name,
        int(counts.sum()),
        psi(bins.counts, counts),
        max(LEAST_PSI, noise_floor(bins.counts, counts, chance)),
        jensen_shannon(bins.counts, counts),
        None if name == PREDICTION else kolmogorov_smirnov(bins.counts, counts),
        _change(bins, counts),
    )


def _change(bins: Bins, counts: Array) -> str:
    before, now = np.asarray(bins.counts) / bins.rows, counts / counts.sum()
    place = int(np.argmax(np.abs(now - before)))
    return f"{bins.label(place)}: {before[place]:.0%} -> {now[place]:.0%}"


def low_confidence(reference: Reference, counted: Counted) -> tuple[float, float] | None:
    """Return the share of answers as unsure as the reference's least sure tenth, now and there.

    None without any, or without confidences.
    """
    bins = reference.signals.get("confidence")
    if bins is None or not (counts := counted["confidence"]).sum():
        return None
    return float(counts[:2].sum() / counts.sum()), sum(bins.counts[:2]) / bins.rows
