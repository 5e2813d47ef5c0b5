"""The figures that are wanted of `ferry optimise`, each beside what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from bench.by_hand.chosen import run_ferry
from bench.by_hand.results import LEAST_COSINE, OURS, Result, best_by_hand, ratio
from bench.by_hand.served import served
from bench.scenarios import SCENARIOS

BUDGETS: Mapping[str, str] = {
    "resnet18": "2m", "resnet50": "5m", "photos": "2m", "sentiment": "90s", "digits": "30s"
}  # fmt: skip
"""Of `ferry optimise` for each network, so that every variant of each is tried on two cores."""
OF_THE_BEST = 0.95
TIMES_EAGER: Mapping[str, float] = {
    "resnet18": 2.0, "resnet50": 2.5, "sentiment": 1.5, "digits": 1.0
}  # fmt: skip
MAX_DROP: Mapping[str, float] = {"sentiment": 0.01, "digits": 0.005}
MAX_INT8_SHARE = 0.3
SERVED_TIMES, SERVED_CLIENTS, SERVED_ROUNDS, SERVED_SECONDS = 1.8, 32, 3, 6


class Floor(NamedTuple):
    """A figure that is wanted, and what it came to."""

    wanted: str
    measured: str
    reached: bool


def floors(name: str, results: Sequence[Result]) -> list[Floor]:
    """Return the floors of one network; none without the choice of `ferry optimise`."""
    eager = results[0]
    ours = next((each for each in results if each.recipe.startswith(OURS) and each.rates), None)
    if ours is None:
        return []
    best = best_by_hand(results)
    share, times = ratio(ours, best), ratio(ours, eager)
    found = [
        Floor(
            f"{name}: {OF_THE_BEST} of the best by hand, {best.recipe}", f"{share:.2f}",
            share >= OF_THE_BEST,
        )
    ]  # fmt: skip
    if name in TIMES_EAGER:
        least = TIMES_EAGER[name]
        found.append(Floor(f"{name}: {least} x eager FP32", f"{times:.2f}", times >= least))
    if ours.accuracy is None or eager.accuracy is None:
        is_like = ours.cosine >= LEAST_COSINE
        found.append(Floor(f"{name}: cosine {LEAST_COSINE}", f"{ours.cosine:.4f}", is_like))
    elif name in MAX_DROP:
        drop, most = eager.accuracy - ours.accuracy, MAX_DROP[name]
        found.append(Floor(f"{name}: accuracy falls by {most}", f"{drop:.4f}", drop <= most))
    return found + _sizes(name, results, ours)


def _sizes(name: str, results: Sequence[Result], ours: Result) -> list[Floor]:
    whole = next((each for each in results if each.recipe == "ONNX Runtime FP32"), ours)
    if "int8" not in ours.recipe or not whole.file_bytes:
        return []
    share = ours.file_bytes / whole.file_bytes
    wanted = f"{name}: INT8 file {MAX_INT8_SHARE} of FP32"
    return [Floor(wanted, f"{share:.2f}", share <= MAX_INT8_SHARE)]


def served_floor(models: Path) -> Floor:
    """Ask the optimised resnet18 of a repository over HTTP, and the sample as it was; BenchError.

    Both are served at the same time and asked in turn.
    """
    scenario = SCENARIOS["resnet18"]
    with TemporaryDirectory(prefix="ferry-by-hand-before-") as before:
        run_ferry("samples", scenario.model, "--models", before)
        repositories = {"before": Path(before), "after": models}
        rows = served(scenario, repositories, SERVED_CLIENTS, SERVED_ROUNDS, SERVED_SECONDS)
    slow, fast = (row.per_second for row in rows)
    wanted = f"{scenario.model}: {SERVED_TIMES} x over HTTP, {SERVED_CLIENTS} clients"
    measured = f"{fast / slow:.2f} ({fast:.1f} to {slow:.1f} pictures/s)"
    return Floor(wanted, measured, fast >= SERVED_TIMES * slow)
