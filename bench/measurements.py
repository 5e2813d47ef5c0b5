"""What one run measured, and the medians over rounds that the table shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import harmonic_mean, median


@dataclass(frozen=True)
class Measurement:
    """One variant in one round; rates are requests or, for bare limits, rows per second.

    `answer_count` is how many answers the rate was made from, None where that is no concern.
    `batch_sizes` are those that single requests travelled in.
    """

    per_second: float
    p50_seconds: float | None = None
    p99_seconds: float | None = None
    batch_sizes: tuple[int, ...] = ()
    error_count: int = 0
    answer_count: int | None = None


@dataclass(frozen=True)
class Row:
    """One line of the table: medians over rounds, all errors of all rounds.

    `spread` is (fastest - slowest round) / median, `answer_count` that of the shortest round.
    """

    scenario: str
    variant: str
    clients: int | None
    per_second: float
    p50_seconds: float | None
    p99_seconds: float | None
    mean_batch: float | None
    error_count: int
    spread: float
    answer_count: int | None = None


def summarize(
    scenario: str, variant: str, clients: int | None, rounds: Sequence[Measurement]
) -> Row:
    """Return one table row; `rounds` holds the measurement of each round, at least one."""
    rates = [item.per_second for item in rounds]
    counts = [item.answer_count for item in rounds if item.answer_count is not None]
    rate = median(rates)
    return Row(
        scenario,
        variant,
        clients,
        rate,
        _median([item.p50_seconds for item in rounds]),
        _median([item.p99_seconds for item in rounds]),
        mean_batch([size for item in rounds for size in item.batch_sizes]),
        sum(item.error_count for item in rounds),
        (max(rates) - min(rates)) / rate if rate else 0.0,
        min(counts, default=None),
    )


def mean_batch(sizes: Sequence[int]) -> float | None:
    """Return the mean size of batches, None without samples.

    subtle: a batch of 32 is seen by 32 requests, so the requests' plain mean is too large; the
    harmonic mean undoes that. 32 requests that saw 32 and one that saw 1 are 2 batches: 16.5.
    """
    return harmonic_mean(sizes) if sizes else None


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None
