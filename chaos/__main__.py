"""Entry point of the crash programme: `python -m chaos`, `make chaos`.

Everything runs on this machine, on loopback, in processes that are started and ended here; never
for longer than ten minutes. `--quick` strikes a tenth as often. FERRY_* variables reach the
servers.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType

from bench.processes import BenchError
from chaos.reference import WIDE_NAME
from chaos.report import table, troubles
from chaos.run import Plan, run_scenario
from chaos.scenarios import SCENARIOS
from chaos.verdict import Row
from ferry.commands.samples import is_finished
from ferry.errors import CannotStart
from shared.errors import BadSetting
from shared.settings import Settings

LONGEST_RUN_SECONDS = 600
LAST_START_SECONDS = 570
"""No blow falls later than this, so that what was hit can be finished and shown."""


def main(arguments: Sequence[str]) -> int:
    """Strike and print; 0 when all were answered right, 1 when not, 2 when it could not be run."""
    names, plan = parse_arguments(arguments)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
        signal.signal(number, _interrupt)
    signal.alarm(LONGEST_RUN_SECONDS)
    rows: list[Row] = []
    try:
        _run(names, plan, rows)
    except (BadSetting, BenchError, CannotStart) as error:
        print(f"chaos: {error}", file=sys.stderr)
        return _report(rows) or 2
    except KeyboardInterrupt:
        print("chaos: interrupted or out of time, what it started has ended", file=sys.stderr)
        return _report(rows) or 130
    return _report(rows)


def parse_arguments(arguments: Sequence[str]) -> tuple[list[str], Plan]:
    """Return the scenarios to run, all when none is named, and how long and how often."""
    parser = argparse.ArgumentParser(
        prog="chaos", description="Kill Ferry's processes under load; check every answer."
    )
    known = ", ".join(SCENARIOS)
    parser.add_argument("scenarios", metavar="SCENARIO", nargs="*", help=f"of {known}")
    parser.add_argument("--seconds", type=float, help="for the blows of one scenario [75]")
    parser.add_argument("--quick", action="store_true", help="a tenth of the blows, for a look")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.scenarios) - set(SCENARIOS))
    if unknown:
        parser.error(f"unknown scenario {unknown[0]!r}, known are {known}")
    plan = Plan(options.seconds or Plan.seconds, options.quick)
    return list(dict.fromkeys(options.scenarios)) or list(SCENARIOS), plan


def _run(names: Sequence[str], plan: Plan, rows: list[Row]) -> None:
    """Run the scenarios one after the other, adding their rows, until time is up."""
    settings = Settings.from_env(os.environ)
    started = time.monotonic()
    for name in names:
        scenario = SCENARIOS[name]
        model = Path(settings.models) / scenario.model
        if scenario.model != WIDE_NAME and not is_finished(model):
            raise BenchError(f"no model {scenario.model} in {settings.models}: run `ferry samples`")
        left = LAST_START_SECONDS - (time.monotonic() - started)
        if left <= 0:
            raise BenchError(f"no time left for {name}")
        print(f"{time.monotonic() - started:4.0f} s  {name}: {scenario.killed}", flush=True)
        rows.append(
            run_scenario(scenario, replace(plan, seconds=min(plan.seconds, left)), settings)
        )


def _report(rows: Sequence[Row]) -> int:
    failed = [row for row in rows if not row.passed]
    if rows:
        print(f"\n{table(rows)}\n")
    for row in failed:
        print(troubles(row))
    return 1 if failed else 0


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
        signal.signal(number, signal.SIG_IGN)  # a second one must not break off the orderly end
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
