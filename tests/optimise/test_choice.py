"""The choice among measured variants: by the objective, never a slower one, never a lucky one."""

from __future__ import annotations

import pytest

from worker.optimise.tuning.choice import Row, best_setup, choose, most_together
from worker.optimise.tuning.measuring import Arrangement, Measured

ALONE, TWO = Arrangement(1, 2), Arrangement(2, 1)


def row(
    name: str, *rates: float, latency: float = 0.1, size: int = 100, verdict: str = "ok"
) -> Row:
    measured = Measured(
        load_seconds=[0.1], rates={(ALONE, 8): list(rates)}, latencies={ALONE: [latency] * 3}
    )
    return Row(name, "r", "FP32", verdict=verdict, size_bytes=size, measured=measured)


def chosen(*rows: Row, objective: str = "throughput") -> str:
    return choose(rows, objective).name


def test_the_fastest_is_chosen() -> None:
    assert chosen(row("original", 10, 10, 10), row("a", 12, 12, 12), row("b", 15, 15, 15)) == "b"


@pytest.mark.parametrize("objective", ["throughput", "latency", "size"])
def test_what_is_slower_than_the_original_is_never_chosen(objective: str) -> None:
    original = row("original", 10, 10, 10, latency=0.1, size=100)
    slower = row("slower", 9.9, 9.9, 9.9, latency=0.11, size=1)

    assert chosen(original, slower, objective=objective) == "original"
    assert slower.verdict == "slower"


def test_what_failed_is_not_chosen_however_fast() -> None:
    original, wrong = row("original", 10, 10, 10), row("wrong", 99, 99, 99, verdict="failed")

    assert chosen(original, wrong) == "original"
    assert wrong.verdict == "failed"


def test_a_gain_within_what_measurements_repeat_is_no_reason() -> None:
    assert chosen(row("original", 10, 10, 10), row("a", 10.1, 10.1, 10.1)) == "original"


def test_rounds_are_compared_in_pairs() -> None:
    original = row("original", 10, 2, 30)  # the machine was busy in the second, idle in the third
    better = row("better", 12, 2.4, 36)

    assert chosen(original, better) == "better"


def test_one_lucky_round_is_no_speed() -> None:
    original, lucky = row("original", 10, 10, 10), row("lucky", 9, 9, 9)
    assert lucky.measured is not None
    lucky.measured.rates[TWO, 4] = [50.0]

    assert chosen(original, lucky) == "original"


def test_no_more_are_batched_than_is_as_good_as_the_best() -> None:
    rates = {
        (ALONE, 2): [10.0] * 3, (ALONE, 4): [20.0] * 3, (ALONE, 8): [19.0] * 3,
        (ALONE, 16): [17.0], (TWO, 32): [19.9] * 3,
    }  # fmt: skip
    setup = best_setup(Measured(rates=rates), "throughput")
    assert (setup.batch, most_together(Measured(rates=rates), setup)) == (4, 8)

    del rates[ALONE, 16]  # then nothing is known of larger ones

    assert most_together(Measured(rates=rates), setup) is None


def test_the_objective_decides_what_is_best() -> None:
    rows = [
        row("original", 10, 10, 10, latency=0.10, size=100),
        row("fast", 20, 20, 20, latency=0.09, size=90),
        row("soon", 15, 15, 15, latency=0.01, size=80),
        row("small", 11, 11, 11, latency=0.09, size=10),
    ]

    assert chosen(*rows) == "fast"
    for each in rows:
        each.verdict = "ok"
    assert chosen(*rows, objective="latency") == "soon"
    for each in rows:
        each.verdict = "ok"
    assert chosen(*rows, objective="size") == "small"
