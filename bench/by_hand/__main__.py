"""What a competent person reaches by hand: each tool's own recipe, beside eager FP32.

    python -m bench.by_hand [resnet18 resnet50 photos sentiment digits] [--optimise 2m]
    python -m bench.by_hand --floors        # eighteen minutes on two quiet cores

Everything runs in one process on the same threads, in interleaved rounds; a recipe's figure is the
median of its rounds. How far its answers are from eager FP32's is measured on real inputs that it
was not calibrated with. With `--optimise` the choice of `ferry optimise` is a row too: made of the
sample with the rows of calibration, and run in the same way as the others. `--floors` does so with
the budget that each network needs, asks resnet18 over HTTP before and after, and says which of the
wanted figures are reached.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import torch

from bench.by_hand.chosen import optimised
from bench.by_hand.floors import BUDGETS, Floor, floors, served_floor
from bench.by_hand.networks import NETWORKS, ROWS
from bench.by_hand.results import OURS, Result, measure, table
from bench.report import aligned


def main() -> None:
    """Make and measure the recipes of each network that is named, and print their tables."""
    options = _options()
    torch.set_num_threads(options.threads)
    reached: list[Floor] = []
    with tempfile.TemporaryDirectory(prefix="ferry-by-hand-") as directory:
        models = options.models or Path(directory)
        for name in options.names or NETWORKS:
            budget = BUDGETS[name] if options.floors else options.optimise
            results = _measured(name, options, models, budget)
            load = os.getloadavg()[0]
            print(f"\n{name}, {ROWS} rows a batch, {options.threads} threads, load {load:.1f}")
            print(table(results), flush=True)
            reached += floors(name, results)
        if options.floors:
            if (models / "resnet18" / "2").is_dir():
                reached.append(served_floor(models))
            print(f"\n{aligned([Floor._fields, *map(_cells, reached)], 3)}", flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.by_hand")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NETWORKS)}")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5, help="per recipe and round")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--optimise", default="", metavar="BUDGET", help="measure its choice too")
    parser.add_argument("--floors", action="store_true", help="measure all that is wanted")
    parser.add_argument("--models", type=Path, metavar="DIR", help="to keep in, and begin from")
    options = parser.parse_args()
    if unknown := set(options.names) - set(NETWORKS):
        parser.error(f"no network {', '.join(sorted(unknown))}; there are {', '.join(NETWORKS)}")
    return options


def _measured(name: str, options: argparse.Namespace, models: Path, budget: str) -> list[Result]:
    network, more = NETWORKS[name](), {}
    if budget:
        with tempfile.TemporaryDirectory(prefix="ferry-by-hand-") as directory:
            chosen = optimised(network, models, Path(directory), budget)
        more[f"{OURS}: {chosen.variant}"] = lambda: chosen.made(options.threads)
    return measure(network, options.rounds, options.seconds, options.threads, more)


def _cells(floor: Floor) -> list[str]:
    return [floor.wanted, floor.measured, "yes" if floor.reached else "no"]


if __name__ == "__main__":
    main()
