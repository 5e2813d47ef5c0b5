"""What a competent person reaches by hand: each tool's own recipe, beside eager FP32.

    python -m bench.by_hand [resnet18 resnet50 photos sentiment digits] [--optimise 2m]

Everything runs in one process on the same threads, in interleaved rounds; a recipe's figure is the
median of its rounds. How far its answers are from eager FP32's is measured on real inputs that it
was not calibrated with. With `--optimise` the choice of `ferry optimise` is a row too: made of the
sample with the rows of calibration, and run in the same way as the others.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from bench.by_hand.networks import NETWORKS, ROWS, Network
from bench.by_hand.recipes import Made, run_script, session
from bench.by_hand.results import OURS, measure, table


def main() -> None:
    """Make and measure the recipes of each network that is named, and print their tables."""
    parser = argparse.ArgumentParser(prog="python -m bench.by_hand")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NETWORKS)}")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="per recipe and round")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--optimise", default="", metavar="BUDGET", help="measure its choice too")
    parser.add_argument("--models", type=Path, metavar="DIR", help="to keep in, and begin from")
    options = parser.parse_args()
    if unknown := set(options.names) - set(NETWORKS):
        parser.error(f"no network {', '.join(sorted(unknown))}; there are {', '.join(NETWORKS)}")
    torch.set_num_threads(options.threads)
    for name in options.names or NETWORKS:
        network = NETWORKS[name]()
        with tempfile.TemporaryDirectory(prefix="ferry-by-hand-") as directory:
            more = {}
            if options.optimise:
                models = options.models or Path(directory)
                chosen = optimised(network, models, Path(directory), options.optimise)
                more[f"{OURS}: {chosen.variant}"] = partial(_made, chosen, options.threads)
            results = measure(network, options.rounds, options.seconds, options.threads, more)
        load = os.getloadavg()[0]
        print(f"\n{name}, {ROWS} rows a batch, {options.threads} threads, load {load:.1f}")
        print(table(results), flush=True)


class Chosen(NamedTuple):
    """The variant that `ferry optimise` chose, and the file that is served of it."""

    variant: str
    file: Path


def optimised(network: Network, models: Path, directory: Path, budget: str) -> Chosen:
    """Have `ferry optimise` make the sample faster; return its choice, which may be the original.

    Its own lines go to the standard error. What was chosen before stays.
    """
    if not (found := list((models / network.name).glob("*/report.json"))):
        _ferry("samples", network.name, "--models", models)
        data = () if network.write_data is None else ("--data", network.write_data(directory))
        _ferry("optimise", network.name, "--models", models, *data, "--budget", budget)
        found = list((models / network.name).glob("*/report.json"))
    report = max(found)
    variants = json.loads(report.read_text(encoding="utf-8"))["variants"]
    variant = next(each["name"] for each in variants if each["chosen"])
    return Chosen(variant, next(report.parent.glob("model.*")))


def _ferry(*arguments: str | Path) -> None:
    command = [sys.executable, "-m", "ferry", *map(str, arguments)]
    subprocess.run(command, check=True, stdout=sys.stderr)


def _made(chosen: Chosen, threads: int) -> Made:
    if chosen.file.suffix == ".onnx":
        return session(chosen.file, threads)
    return run_script(chosen.file)


if __name__ == "__main__":
    main()
