"""Families of metrics: declared once, filled anew at each scrape."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    UnknownMetricFamily,
)
from prometheus_client.metrics_core import Metric

BY_VERSION = ("model", "version")
Filled = Mapping[str, Any]
"""Families by name; each has `add_metric`, with the values of its labels in their order."""


class Family(NamedTuple):
    """One family: its name, what it counts, and its labels.

    prometheus_client writes `_total` behind the names of counters. A `plain` one is a counter
    whose name is another program's, and has none: no type is told of it.
    """

    kind: str
    name: str
    text: str
    labels: tuple[str, ...]

    def empty(self) -> Metric:
        """Return it without figures."""
        classes = {
            "gauge": GaugeMetricFamily,
            "counter": CounterMetricFamily,
            "histogram": HistogramMetricFamily,
            "plain": UnknownMetricFamily,
        }
        metric: Metric = classes[self.kind](self.name, self.text, labels=self.labels)
        return metric


class Figures(ABC):
    """A collector, as prometheus_client asks it at each scrape."""

    families: tuple[Family, ...]

    def describe(self) -> Iterable[Metric]:
        """Return the families without figures; asks nobody."""
        return [family.empty() for family in self.families]

    def collect(self) -> Iterable[Metric]:
        """Return the families with figures of this moment."""
        filled = {family.name: family.empty() for family in self.families}
        self.fill(filled)
        return filled.values()

    @abstractmethod
    def fill(self, families: Filled) -> None:
        """Add the figures of this moment."""


def cumulative(bounds: Iterable[float], counts: Iterable[int]) -> list[tuple[str, float]]:
    """Return a histogram's buckets: how much was at most each bound; the last count is the rest."""
    total, buckets = 0, []
    for name, count in zip([*map(str, bounds), "+Inf"], counts, strict=True):
        total += count
        buckets.append((name, float(total)))
    return buckets
