"""How far each version's rows and answers are from its reference, by its latest ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from redis import Redis

from shared.drift.counts import Counted, DriftCounts
from shared.drift.findings import findings, low_confidence
from shared.drift.reference import Reference, reference_of
from shared.exposition.families import BY_VERSION, Family, Figures, Filled
from shared.model_spec import ModelSpec
from shared.registry.registry import Registry

BY_SIGNAL = (*BY_VERSION, "signal")
PSI = Family(
    "gauge",
    "ferry_drift_psi",
    "Population stability index of the latest answers against the version's reference.",
    BY_SIGNAL,
)
PSI_LIMIT = Family(
    "gauge",
    "ferry_drift_psi_limit",
    "The index above which it is drift: the noise floor of so many answers, 0.1 at least.",
    BY_SIGNAL,
)
JENSEN_SHANNON = Family(
    "gauge", "ferry_drift_jensen_shannon", "Their Jensen-Shannon distance, 0 to 1.", BY_SIGNAL
)
KOLMOGOROV_SMIRNOV = Family(
    "gauge",
    "ferry_drift_kolmogorov_smirnov",
    "The largest difference of their cumulated shares, 0 to 1; not of classes.",
    BY_SIGNAL,
)
DRIFT_ROWS = Family(
    "gauge", "ferry_drift_rows", "Latest rows that are compared; 0 before the first.", BY_VERSION
)
LOW_CONFIDENCE = Family(
    "gauge",
    "ferry_low_confidence_share",
    "Share of the latest answers as unsure as the reference's least sure tenth.",
    BY_VERSION,
)


class DriftFigures(Figures):
    """Compares at each scrape; versions without a reference have no series."""

    families = (PSI, PSI_LIMIT, JENSEN_SHANNON, KOLMOGOROV_SMIRNOV, DRIFT_ROWS, LOW_CONFIDENCE)

    def __init__(
        self,
        client: Redis,
        prefix: str,
        registry: Registry,
        versions: Callable[[], Iterable[ModelSpec]],
    ) -> None:
        """Ask `client` at each scrape, of all `versions` that there are then."""
        self._counts = DriftCounts(client, prefix)
        self._registry = registry
        self._versions = versions

    def fill(self, families: Filled) -> None:
        """Add the figures of versions with a reference; raises RedisUnavailable."""
        references = self._registry.references()
        known = [
            (spec, reference)
            for spec in self._versions()
            if (reference := reference_of(references.get(spec.key))) is not None
        ]
        counted = self._counts.latest([(spec.key, reference) for spec, reference in known])
        for (spec, reference), counts in zip(known, counted, strict=True):
            _add(families, [spec.name, spec.version], reference, counts)


def _add(families: Filled, row: list[str], reference: Reference, counted: Counted) -> None:
    found = findings(reference, counted)
    families[DRIFT_ROWS.name].add_metric(row, float(max([each.rows for each in found], default=0)))
    for each in found:
        if each.is_enough:
            for family, value in (
                (PSI, each.psi), (PSI_LIMIT, each.limit), (JENSEN_SHANNON, each.jensen_shannon),
                (KOLMOGOROV_SMIRNOV, each.kolmogorov_smirnov),
            ):  # fmt: skip
                if value is not None:
                    families[family.name].add_metric([*row, each.signal], value)
    low = low_confidence(reference, counted)
    if low is not None:
        families[LOW_CONFIDENCE.name].add_metric(row, low[0])
