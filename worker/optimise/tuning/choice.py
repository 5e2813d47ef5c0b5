"""Chooses among measured variants: the best by the objective that is no slower than the original.

Rates are compared round by round, for what else the machine does changes from round to round.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from worker.optimise.tuning.measuring import FEWEST_ROUNDS, Arrangement, Measured

WORTH = 1.02
"""The gain that a new version must bring at least; measurements repeat no better."""
AS_GOOD = 0.9
OK, CHOSEN, SLOWER, FAILED = "ok", "chosen", "slower", "failed"
NOT_APPLICABLE, NOT_TRIED = "not applicable", "not tried"


@dataclass
class Row:
    """All that is known of one variant, or of the original."""

    name: str
    runtime: str
    precision: str
    verdict: str = OK
    reason: str = ""
    note: str = ""
    size_bytes: int = 0
    compressed_bytes: int = 0
    digest: str = ""
    kernels: str = ""
    figures: Mapping[str, Any] = field(default_factory=dict)
    made_seconds: float = 0.0
    command: str = ""
    measured: Measured | None = None


@dataclass(frozen=True)
class Setup:
    """How a variant is run best: its instances, their threads, the rows of a batch."""

    arrangement: Arrangement
    batch: int


def best_setup(measured: Measured, objective: str) -> Setup:
    """Return the arrangement and the batch size of the highest rate; for latency the soonest's."""
    rounds = min(FEWEST_ROUNDS, max(map(len, measured.rates.values())))
    rates = {
        key: statistics.median(values)
        for key, values in measured.rates.items()
        if len(values) >= rounds  # one lucky round is no speed
    }
    if objective == "latency" and measured.latencies:
        soonest = min(measured.latencies, key=lambda p: statistics.median(measured.latencies[p]))
        rates = {key: rate for key, rate in rates.items() if key[0] == soonest}
    arrangement, batch = max(rates, key=lambda key: rates[key])
    return Setup(arrangement, batch)


def most_together(measured: Measured, setup: Setup) -> int | None:
    """Return the largest batch that is as good as the best; None where no larger one is worse.

    Fewer, larger batches cost the queue less, so a larger one counts as worse by a tenth or more.
    """
    rates = {
        size: statistics.median(values)
        for (arrangement, size), values in measured.rates.items()
        if arrangement == setup.arrangement
    }
    good = max(size for size, rate in rates.items() if rate >= AS_GOOD * rates[setup.batch])
    return good if good < max(rates) else None


def values_of(measured: Measured, objective: str) -> list[float]:
    """Return the figure of each round, the higher the better: rows/s, or passes/s for latency."""
    setup = best_setup(measured, objective)
    if objective == "latency":
        return [1 / seconds for seconds in measured.latencies[setup.arrangement]]
    return measured.rates[setup.arrangement, setup.batch]


def gain(row: Row, original: Row, objective: str) -> float:
    """Return how many times the original's figure a variant's is, the median over rounds."""
    assert row.measured is not None and original.measured is not None, "both were measured"
    pairs = zip(
        values_of(row.measured, objective), values_of(original.measured, objective), strict=False
    )
    return statistics.median(ours / theirs for ours, theirs in pairs)


def is_measured(row: Row) -> bool:
    """Tell whether a variant ran through at least one round."""
    return row.measured is not None and bool(row.measured.rates) and not row.measured.fault


def choose(rows: Sequence[Row], objective: str) -> Row:
    """Set the verdict of each row that is `ok`, and return the chosen one.

    The first row is the original, which is chosen where no other is worth it.
    """
    original, *others = rows
    fit = []
    for row in others:
        if row.verdict != OK or not is_measured(row) or not is_measured(original):
            continue
        times = gain(row, original, "latency" if objective == "latency" else "throughput")
        if times < 1:
            row.verdict = SLOWER
            row.reason = f"{times:.2f} times the original's speed"
        elif objective == "size" or times >= WORTH:
            fit.append((row, times))
    chosen = original
    if objective == "size":
        smaller = [row for row, _ in fit if row.size_bytes < original.size_bytes]
        chosen = min(smaller, key=lambda row: row.size_bytes, default=original)
    elif fit:
        chosen = max(fit, key=lambda each: each[1])[0]
    chosen.verdict = CHOSEN
    return chosen
