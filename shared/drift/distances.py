"""How far two distributions over the same bins are apart, and how far chance alone takes them.

PSI                 sum of (q - p) ln(q / p), the population stability index
Jensen-Shannon      sqrt(KL(p | m) / 2 + KL(q | m) / 2) with m = (p + q) / 2, logarithms to base 2
Kolmogorov-Smirnov  max |P - Q| of the sums up to each bin

Of rows of one distribution, n of the one and m of the other, the PSI is about (1 / n + 1 / m) times
a chi-squared variable of as many degrees of freedom as there are bins but one. Its quantile is the
noise floor: what is below it says nothing, however large it looks. Served rows are no independent
ones: the same comes again, and one client's are alike. So they count as half as many.

Source: B. Yurdakul, Statistical properties of population stability index, dissertation, 2018.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from shared.datatypes import Array

Counts = Sequence[int] | Array
ALIKE = 2.0
"""By how much dependence of served rows spreads their counts: 500 drawn from 360 others, as often
as not twice, are 8 % false alarms without it and none of 1,000 with it (2026-11-30).
"""


def psi(reference: Counts, current: Counts) -> float:
    """Return the population stability index; half a row more in each bin, so that none is empty."""
    p, q = _smoothed(reference), _smoothed(current)
    return float(((q - p) * np.log(q / p)).sum())


def _smoothed(counts: Counts) -> Array:
    array = np.asarray(counts, np.float64) + 0.5
    shares: Array = array / array.sum()
    return shares


def jensen_shannon(reference: Counts, current: Counts) -> float:
    """Return the Jensen-Shannon distance, 0 to 1."""
    p, q = _shares(reference), _shares(current)
    middle = (p + q) / 2
    return float(np.sqrt(max(0.0, (_divergence(p, middle) + _divergence(q, middle)) / 2)))


def _shares(counts: Counts) -> Array:
    array = np.asarray(counts, np.float64)
    shares: Array = array / array.sum()
    return shares


def _divergence(p: Array, middle: Array) -> float:
    some = p > 0
    return float((p[some] * np.log2(p[some] / middle[some])).sum())


def kolmogorov_smirnov(reference: Counts, current: Counts) -> float:
    """Return the largest difference between the two sums up to a bin, 0 to 1."""
    return float(np.abs(np.cumsum(_shares(reference)) - np.cumsum(_shares(current))).max())


def noise_floor(reference: Counts, current: Counts, chance: float) -> float:
    """Return the PSI that served rows like the reference's exceed by this chance at most."""
    p, q = np.asarray(reference), np.asarray(current)
    bins = int(np.sum((p > 0) | (q > 0)))
    return float(1 / p.sum() + ALIKE / q.sum()) * _chi_squared(max(1, bins - 1), chance)


def _chi_squared(degrees: int, chance: float) -> float:
    """Return what a chi-squared variable exceeds by this chance, within 1 %.

    Source: E. B. Wilson, M. M. Hilferty, The distribution of chi-square, PNAS 17, 1931.
    """
    part = 2 / (9 * degrees)
    z = NormalDist().inv_cdf(1 - chance)
    return float(degrees * (1 - part + z * part**0.5) ** 3)
