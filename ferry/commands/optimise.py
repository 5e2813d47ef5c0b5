"""`ferry optimise`: makes a faster version of a model, proved and measured, with a report."""

from __future__ import annotations

import argparse
import re
from importlib import import_module
from pathlib import Path
from typing import Any

from ferry.commands.optimise_options import environment
from shared.settings import Settings

UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}


def add_optimise(command: argparse.ArgumentParser) -> None:
    """Add the options."""
    command.description = (
        "Make variants of a version (runtimes, precisions), prove and measure each on this "
        "machine, and add the best as a new version with a report beside it. Nothing slower is "
        "ever chosen."
    )
    argument = command.add_argument
    argument("name", metavar="MODEL")
    argument("--version", default="", metavar="N", help="to begin from; the highest, if not given")
    argument("--data", type=Path, metavar="PATH", help="real rows: folder, CSV, NDJSON, npz ...")
    argument("--label", default="", metavar="COLUMN", help="the column of --data with the classes")
    argument(
        "--max-accuracy-drop", type=_share, default=0.01, metavar="X",
        help="most that the accuracy may fall, 0.01 if not given",
    )  # fmt: skip
    argument("--objective", choices=("throughput", "latency", "size"), default="throughput")
    argument(
        "--budget", type=_seconds, default=600.0, metavar="TIME",
        help="as 90s, 10m or 1h; 10m if not given",
    )  # fmt: skip
    argument(
        "--only", action="append", default=[], metavar="VARIANT", help="make these variants alone"
    )
    argument(
        "--serve", action="store_true",
        help="swap the new version in: as a shadow, for a tenth of the requests, then for all",
    )  # fmt: skip
    argument(
        "--min-agreement", type=_share, default=0.95, metavar="X",
        help="with --serve: share of the same classes as a shadow, 0.95 if not given",
    )  # fmt: skip
    argument("--seed", type=int, default=0, metavar="N", help="of made-up rows and of the order")
    argument("--models", dest="FERRY_MODELS", metavar="DIR", help="as FERRY_MODELS")
    command.set_defaults(run=_run)


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a share from 0 to 1, as 0.01")
    return value


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(\d{1,6}(?:\.\d+)?)([smh]?)", text)
    seconds = float(found[1]) * UNITS[found[2]] if found else 0.0
    if seconds <= 0:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a time, as 90s, 10m or 1h")
    return seconds


def _run(options: argparse.Namespace) -> int:
    tuning = import_module("worker.optimise.tuning.optimise")  # slow: it brings torch
    environ = environment(options)
    order = tuning.OptimiseOrder(
        options.name, options.version, options.data, options.label, options.max_accuracy_drop,
        options.objective, options.budget, tuple(options.only), options.seed,
    )  # fmt: skip
    repository = Path(Settings.from_env(environ).models)
    served: list[str] = []

    def before_adding() -> None:
        if options.serve:
            served[:] = [swap_in.pin_serving(environ, options.name)]

    swap_in = import_module("ferry.commands.swap_in")
    if options.serve:
        swap_in.pin_serving(environ, options.name)  # else it would be known after the work
    done = tuning.optimise(order, repository, environ, _say, before_adding=before_adding)
    _tell(done)
    if done.directory is None:
        return 0
    if served:
        new = done.directory.name
        swap_in.swap_in(environ, options.name, served[0], new, options.min_agreement)
        return 0
    return int(import_module("ferry.commands.add").told(environ, [options.name]))


def _say(line: str) -> None:
    print(line, flush=True)


def _tell(done: Any) -> None:
    """Print the table, narrow, and where everything is."""
    pages = import_module("worker.optimise.tuning.report")
    for line in pages.as_table(done.report):
        print(line)
    print(pages.headline(done.report))
    if done.directory is not None:
        print(f"added as {done.directory}")
    print(f"report: {done.report_directory / 'report.html'}")
