"""Recipes measured in interleaved rounds, compared with eager FP32, and their table."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np

from bench.by_hand.networks import ROWS, Inputs, Network
from bench.by_hand.recipes import Made, Recipes, Run
from bench.report import aligned
from shared.datatypes import Array

LEAST_COSINE = 0.99
"""Of the centred logits, on average: a recipe below it is not what anyone would serve."""
OURS = "ferry optimise"


@dataclass(frozen=True)
class Result:
    """One recipe's figures; `problem` says why there are none."""

    recipe: str
    rates: Sequence[float] = ()
    cosine: float = 0.0
    agreement: float = 0.0
    accuracy: float | None = None
    file_bytes: int = 0
    problem: str = ""

    @property
    def rate(self) -> float:
        """Return the median of the rounds, in rows a second."""
        return statistics.median(self.rates) if self.rates else 0.0


def measure(
    network: Network,
    rounds: int,
    seconds: float,
    threads: int,
    more: Mapping[str, Callable[[], Made]] = MappingProxyType({}),
) -> list[Result]:
    """Return each recipe's figures, eager FP32 first; what fails is a row that says so.

    `more` is measured beside the recipes.
    """
    with tempfile.TemporaryDirectory(prefix="ferry-by-hand-") as directory:
        recipes = Recipes(network, Path(directory), threads)
        made, results = dict[str, Made](), dict[str, Result]()
        wanted: Array | None = None
        for name, recipe in (recipes.all() | dict(more)).items():
            try:
                made[name] = recipe()
                found = _answers(made[name], network)
                wanted = found if wanted is None else wanted  # eager's, which comes first
                results[name] = _compared(name, network, made[name], found, wanted)
            except Exception as error:  # a border: a tool that cannot do it is told, and left out
                made.pop(name, None)
                lines = str(error).strip().splitlines() or [""]
                results[name] = Result(name, problem=f"{type(error).__name__}: {lines[0][:80]}")
        rates: dict[str, list[float]] = {name: [] for name in made}
        for _ in range(rounds):
            for name, each in made.items():
                rates[name].append(_rows_per_second(each.run, network.asked, seconds))
        return [Result(**{**vars(each), "rates": rates.get(n, ())}) for n, each in results.items()]


def _rows_per_second(run: Run, batches: Sequence[Inputs], seconds: float) -> float:
    run(batches[0])
    rows, start = 0, time.perf_counter()
    while (taken := time.perf_counter() - start) < seconds or not rows:
        run(batches[rows // ROWS % len(batches)])
        rows += ROWS
    return rows / (taken if rows > ROWS else time.perf_counter() - start)


def _answers(made: Made, network: Network) -> Array:
    answers = [made.run(batch) for batch in network.asked]
    return np.concatenate(answers).astype(np.float64)


def _compared(name: str, network: Network, made: Made, found: Array, wanted: Array) -> Result:
    """Compare answers to the same rows; cosines are of logits whose row's mean was taken off."""
    a, b = (x - x.mean(axis=1, keepdims=True) for x in (found, wanted))
    cosines = (a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    best = found.argmax(axis=1)
    labels = network.labels
    return Result(
        name,
        cosine=float(cosines.mean()),
        agreement=float((best == wanted.argmax(axis=1)).mean()),
        accuracy=None if labels is None else float((best == labels).mean()),
        file_bytes=made.file.stat().st_size if made.file else 0,
    )


def table(results: Sequence[Result]) -> str:
    """Return the figures as aligned text, and which recipe is the best that is near enough."""
    eager = results[0].rate
    lines: list[Sequence[str]] = [
        ("recipe", "rows/s", "x eager", "spread", "cosine", "top-1", "accuracy", "MB")
    ]
    for each in results:
        if each.problem:
            lines.append((each.recipe, each.problem, *[""] * 6))
            continue
        spread = (max(each.rates) - min(each.rates)) / each.rate
        lines.append((
            each.recipe, f"{each.rate:.1f}", f"{each.rate / eager:.2f}", f"{spread:.2f}",
            f"{each.cosine:.4f}", f"{each.agreement:.3f}",
            "" if each.accuracy is None else f"{each.accuracy:.3f}",
            f"{each.file_bytes / 1e6:.2f}" if each.file_bytes else "",
        ))  # fmt: skip
    best = best_by_hand(results)
    lines_below = [f"best by hand: {best.recipe}, {best.rate / eager:.2f} x eager"]
    for each in results:
        if each.recipe.startswith(OURS) and each.rates:
            share = ratio(each, best)
            lines_below.append(f"{each.recipe}: {share:.2f} of the best by hand, round by round")
    return "\n".join([aligned(lines, 1), *lines_below])


def best_by_hand(results: Sequence[Result]) -> Result:
    """Return the fastest recipe that answers nearly as eager FP32 does, which is one of them."""
    near = [each for each in results if each.cosine >= LEAST_COSINE and each.rates]
    return max(
        (each for each in near if not each.recipe.startswith(OURS)), key=lambda each: each.rate
    )


def ratio(ours: Result, theirs: Result) -> float:
    """Return how many times as fast one is as the other, the median over rounds."""
    return statistics.median(a / b for a, b in zip(ours.rates, theirs.rates, strict=True))
