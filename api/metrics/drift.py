"""How far each version's rows and answers are from its reference, by its latest ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from shared.drift.findings import LatestDrift, VersionDrift, low_confidence
from shared.exposition.families import BY_VERSION, Family, Figures, Filled
from shared.model_spec import ModelSpec

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

    def __init__(self, latest: LatestDrift, versions: Callable[[], Iterable[ModelSpec]]) -> None:
        """Ask for the `latest` at each scrape, of all `versions` that there are then."""
        self._latest = latest
        self._versions = versions

    def fill(self, families: Filled) -> None:
        """Add the figures of versions with a reference; raises RedisUnavailable."""
        for version in self._latest.of(self._versions()):
            _add(families, [version.spec.name, version.spec.version], version)


def _add(families: Filled, row: list[str], version: VersionDrift) -> None:
    rows = max([each.rows for each in version.signals], default=0)
    families[DRIFT_ROWS.name].add_metric(row, float(rows))
    for each in version.signals:
        if each.is_enough:
            for family, value in (
                (PSI, each.psi), (PSI_LIMIT, each.limit), (JENSEN_SHANNON, each.jensen_shannon),
                (KOLMOGOROV_SMIRNOV, each.kolmogorov_smirnov),
            ):  # fmt: skip
                if value is not None:
                    families[family.name].add_metric([*row, each.signal], value)
    low = low_confidence(version.reference, version.counted)
    if low is not None:
        families[LOW_CONFIDENCE.name].add_metric(row, low[0])
