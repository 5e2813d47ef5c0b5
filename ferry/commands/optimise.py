"""`ferry optimise`: makes a faster version of a model, proved and measured, with a report."""

from __future__ import annotations

import argparse
import re
import signal
import time
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from ferry.commands.optimise_options import (
    describe_original,
    describe_repository,
    describe_version,
    environment,
    tolerance,
)
from ferry.commands.progress_bar import Tell, progress_bar
from ferry.errors import NoRedis
from shared.errors import BadModel
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
    describe_version(argument, "to begin from")
    argument(
        "--original", default="", metavar="MODULE:CALLABLE",
        help="what the version was made from, for variants that a file cannot be made into",
    )  # fmt: skip
    describe_original(argument)
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
        "--min-agreement", type=_share, metavar="X",
        help="with --serve: share of the same classes as a shadow; else as when it was judged",
    )  # fmt: skip
    argument("--seed", type=int, default=0, metavar="N", help="of made-up rows and of the order")
    describe_repository(argument)
    command.set_defaults(run=_run)


def _share(text: str) -> float:
    return tolerance(text, most=1)


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(\d{1,6}(?:\.\d+)?)([smh]?)", text)
    seconds = float(found[1]) * UNITS[found[2]] if found else 0.0
    if seconds <= 0:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a time, as 90s, 10m or 1h")
    return seconds


def _run(options: argparse.Namespace) -> int:
    tuning = import_module("worker.optimise.tuning.optimise")  # slow: it brings torch
    environ = environment(options)
    swapping = import_module("ferry.commands.swap_in")
    order = tuning.OptimiseOrder(
        options.name, options.version, options.data, options.label, options.max_accuracy_drop,
        options.objective, options.budget, tuple(options.only), options.seed,
        _original(options),
    )  # fmt: skip
    repository = Path(Settings.from_env(environ).models)
    pin = swapping.Pin(environ, options.name)
    if options.serve:
        swapping.serving_version(environ, options.name)  # else it would be known after the work
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # keeps what is finished, as Ctrl-C
    try:
        with progress_bar(options.name) as tell:
            done = tuning.optimise(
                order, repository, environ, partial(_say, tell, order, time.monotonic()),
                before_adding=pin.hold if options.serve else _nothing,
            )  # fmt: skip
    except BaseException:
        pin.undo()
        raise
    _tell(done)
    if done.directory is None:
        _show_report(environ, repository, options.name, str(done.report["version"]))
        return 0
    if options.serve:
        new = done.directory.name
        expected = swapping.Expected.of(options.min_agreement, done.report)
        swapping.swap_in(environ, options.name, pin.version, new, expected)
        return 0
    return int(import_module("ferry.commands.add").told(environ, [options.name]))


def _nothing() -> None:
    pass


def _original(options: argparse.Namespace) -> Any:
    """Return what the version was made from; raises BadModel for what fills nothing."""
    if options.original:
        subjects = import_module("worker.optimise.subjects")
        return subjects.Original(options.original, options.weights, options.arguments)
    for option, given in (("--weights", options.weights), ("--arguments", options.arguments)):
        if given not in {None, "{}"}:
            raise BadModel(f"{option} {given}: expected beside --original, which it fills")
    return None


def _show_report(environ: dict[str, str], repository: Path, name: str, version: str) -> None:
    """Have a Ferry that runs here show the page of a version that stays.

    One that starts later reads it beside the version.
    """
    page = import_module("worker.repository.models").read_model(repository, name, version).report()
    try:
        with import_module("ferry.commands.models").operating(environ) as models:
            spec = models.registry.snapshot().models.get(name, {}).get(version)
            if spec is not None and page is not None:
                models.registry.keep_page(spec.key, page)
    except NoRedis:
        return


def _say(tell: Tell, order: Any, began: float, line: str) -> None:
    print(line, flush=True)
    tell(order.share_after(time.monotonic() - began), line.partition(":")[0])


def _tell(done: Any) -> None:
    """Print the table, narrow, and where everything is."""
    pages = import_module("worker.optimise.tuning.report")
    for line in pages.as_table(done.report):
        print(line)
    print(pages.headline(done.report))
    if done.directory is not None:
        print(f"added as {done.directory}")
    print(f"report: {done.report_directory / 'report.html'}")
