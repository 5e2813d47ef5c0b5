"""How far two histograms are apart: known answers, and what chance does."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon
from scipy.stats import chi2

from shared.drift.distances import ALIKE, jensen_shannon, kolmogorov_smirnov, noise_floor, psi

HALVES, QUARTER = [500, 500], [250, 750]


def test_the_stability_index_of_a_known_pair() -> None:
    by_hand = (0.25 - 0.5) * math.log(0.25 / 0.5) + (0.75 - 0.5) * math.log(0.75 / 0.5)

    assert psi(HALVES, QUARTER) == pytest.approx(by_hand, rel=5e-3)
    assert psi(HALVES, [5, 5]) == pytest.approx(0.0, abs=1e-12)


def test_an_empty_bin_makes_no_infinity() -> None:
    assert 0.3 < psi([100] * 10, [0, *[55] * 9]) < 1.0
    assert math.isfinite(psi([0, 1000], [1000, 0]))


def test_distances_lie_between_0_and_1_and_agree_with_scipy() -> None:
    p, q = [10, 20, 0, 70], [5, 0, 45, 50]

    assert jensen_shannon(p, q) == pytest.approx(jensenshannon(p, q, base=2))
    assert jensen_shannon([1, 0], [0, 1]) == pytest.approx(1.0)
    assert kolmogorov_smirnov(p, q) == pytest.approx(0.25)
    assert kolmogorov_smirnov([1, 0], [0, 1]) == 1.0


@pytest.mark.parametrize(("bins", "chance"), [(2, 0.01), (10, 1e-3), (12, 1e-4), (60, 1e-3)])
def test_the_noise_floor_is_a_quantile_of_chi_squared(bins: int, chance: float) -> None:
    exact = (1 / (100 * bins) + ALIKE / (50 * bins)) * chi2.ppf(1 - chance, bins - 1)

    assert noise_floor([100] * bins, [50] * bins, chance) == pytest.approx(exact, rel=0.02)


def test_independent_rows_of_one_distribution_stay_below_it() -> None:
    random = np.random.default_rng(3)
    shares = np.full(12, 1 / 12)

    above = 0
    for _ in range(2000):
        reference, served = random.multinomial(1000, shares), random.multinomial(500, shares)
        above += psi(reference, served) > noise_floor(reference, served, 0.01)

    assert above <= 20
