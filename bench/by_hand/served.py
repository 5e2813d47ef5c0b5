"""A model before and after `ferry optimise`, each served by a Ferry of its own, asked over HTTP.

    python -m bench.by_hand.served resnet18 BEFORE AFTER [--clients 32]

BEFORE and AFTER are model repositories. Both are asked in interleaved rounds, the other one idle.
"""

from __future__ import annotations

import argparse
import os
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from bench import wrk
from bench.comparison import Variant, run_rounds
from bench.measurements import Row
from bench.report import table
from bench.scenarios import SCENARIOS, Scenario
from bench.servers import ferry
from bench.single_requests import Request
from shared.settings import Settings

WARM_UP_SECONDS = 5
"""Long against one batch of a large model."""


def main() -> None:
    """Measure, and print both rows and their ratio."""
    parser = argparse.ArgumentParser(prog="python -m bench.by_hand.served")
    parser.add_argument(
        "name", choices=SCENARIOS, metavar="NAME", help=f"of {', '.join(SCENARIOS)}"
    )
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=8)
    options = parser.parse_args()
    scenario = SCENARIOS[options.name]
    repositories = {"before": options.before, "after": options.after}
    rows = served(scenario, repositories, options.clients, options.rounds, options.seconds)
    print(table(rows))
    before, after = (row.per_second for row in rows)
    print(f"{after / before:.2f} times as many, load {os.getloadavg()[0]:.1f}")


def served(
    scenario: Scenario, repositories: dict[str, Path], clients: int, rounds: int, seconds: int
) -> list[Row]:
    """Return a row for each repository; raises BenchError."""
    with ExitStack() as stack:
        variants = []
        for name, models in repositories.items():
            directory = Path(stack.enter_context(TemporaryDirectory(prefix="ferry-served-")))
            settings = replace(Settings.from_env(os.environ), models=str(models))
            port = stack.enter_context(ferry(scenario.model, settings, directory))
            request = Request(port, scenario.path, "POST", scenario.content_type, scenario.body())
            ask = partial(wrk.measure, request, clients, directory=directory)
            ask(WARM_UP_SECONDS)
            variants.append(Variant(name, clients, ask))
        return run_rounds(scenario.model, variants, rounds, seconds)


if __name__ == "__main__":
    main()
