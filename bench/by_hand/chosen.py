"""The choice of `ferry optimise` for a sample, made of the rows of calibration."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from bench.by_hand.networks import Network
from bench.by_hand.recipes import Made, run_script, session


class Chosen(NamedTuple):
    """The variant that `ferry optimise` chose, and the file that is served of it."""

    variant: str
    file: Path

    def made(self, threads: int) -> Made:
        """Return it as the recipes are."""
        return session(self.file, threads) if self.file.suffix == ".onnx" else run_script(self.file)


def optimised(network: Network, models: Path, directory: Path, budget: str) -> Chosen:
    """Have `ferry optimise` make the sample faster; return its choice, which may be the original.

    Its own lines go to the standard error. What was chosen before stays.
    """
    if not (found := list((models / network.name).glob("*/report.json"))):
        run_ferry("samples", network.name, "--models", models)
        data = () if network.write_data is None else ("--data", network.write_data(directory))
        run_ferry("optimise", network.name, "--models", models, *data, "--budget", budget)
        found = list((models / network.name).glob("*/report.json"))
    report = max(found)
    variants = json.loads(report.read_text(encoding="utf-8"))["variants"]
    variant = next(each["name"] for each in variants if each["chosen"])
    return Chosen(variant, next(report.parent.glob("model.*")))


def run_ferry(*arguments: str | Path) -> None:
    """Run a command of Ferry's, its lines on the standard error; raises when it fails."""
    command = [sys.executable, "-m", "ferry", *map(str, arguments)]
    subprocess.run(command, check=True, stdout=sys.stderr)
