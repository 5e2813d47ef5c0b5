"""Entry point of the load benchmarks: `python -m bench`, `make bench`.

Everything runs on this machine, on loopback, in processes that are started and ended here. Takes
about eight minutes on two cores; `--quick` about two, for a look. FERRY_* variables reach the
servers, so FERRY_API_PROCESSES=1 and the like can be compared.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from bench import wrk
from bench.comparison import SIMULATED, Plan, run_scenario, run_simulated_devices
from bench.edge import EDGE, run_edge
from bench.floors import cautions, device_shares, floors
from bench.measurements import Row
from bench.processes import BenchError
from bench.report import run_facts, save, table
from bench.scenarios import SCENARIOS
from ferry.commands.samples import is_finished
from ferry.errors import CannotStart
from shared.errors import BadSetting
from shared.settings import Settings

NAMES = (*SCENARIOS, EDGE, SIMULATED)


def main(arguments: Sequence[str]) -> int:
    """Measure and print; 0 when every measured floor holds, 1 when one does not, 2 for no run."""
    names, plan = parse_arguments(arguments)
    if not wrk.is_installed():
        print("bench: wrk is missing: apt-get install wrk", file=sys.stderr)
        return 2
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    rows: list[Row] = []
    failure = ""
    try:
        settings = Settings.from_env(os.environ)
        for name in names:
            rows += _run(name, plan, settings)
    except BadSetting as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    except (BenchError, CannotStart) as error:
        failure = str(error)  # what was measured before it is worth its minutes
    except KeyboardInterrupt:
        print("bench: interrupted, everything it started has ended", file=sys.stderr)
        return 130
    code = _report(rows, plan, settings)
    if failure:
        print(f"bench: {failure}", file=sys.stderr)
    return 2 if failure else code


def parse_arguments(arguments: Sequence[str]) -> tuple[list[str], Plan]:
    """Return the scenarios to run, all when none is named, and how long."""
    parser = argparse.ArgumentParser(
        prog="bench", description="Load benchmarks with real server processes."
    )
    parser.add_argument("scenarios", metavar="SCENARIO", nargs="*", help=f"of {', '.join(NAMES)}")
    parser.add_argument("--seconds", type=_count, help="per measurement, times 4 for resnet18 [3]")
    parser.add_argument("--rounds", type=_count, help="whose medians are shown [3]")
    parser.add_argument("--clients", type=_counts, help="[1,16,64, and 32 for resnet18]")
    parser.add_argument("--quick", action="store_true", help="1 round of 1 second, for a look")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.scenarios) - set(NAMES))
    if unknown:
        parser.error(f"unknown scenario {unknown[0]!r}, known are {', '.join(NAMES)}")
    usual = Plan(1, 1) if options.quick else Plan()
    plan = Plan(options.seconds or usual.seconds, options.rounds or usual.rounds, options.clients)
    return list(dict.fromkeys(options.scenarios)) or list(NAMES), plan


def _count(value: str) -> int:
    number = int(value)
    if not 1 <= number <= 1000:  # noqa: PLR2004
        raise argparse.ArgumentTypeError(f"{value} is not from 1 to 1000")
    return number


def _counts(value: str) -> tuple[int, ...]:
    return tuple(_count(part) for part in value.split(","))


def _run(name: str, plan: Plan, settings: Settings) -> list[Row]:
    if name == SIMULATED:
        print(f"{name}: starting", flush=True)
        return run_simulated_devices(plan)
    if name == EDGE:
        print(f"{name}: starting", flush=True)
        return run_edge(plan, settings)
    directory = Path(settings.models) / name
    if not is_finished(directory):
        print(f"{name}: SKIPPED, no model in {directory}/1: `ferry samples {name}` makes it")
        return []
    print(f"{name}: starting", flush=True)
    return run_scenario(SCENARIOS[name], plan, settings)


def _report(rows: Sequence[Row], plan: Plan, settings: Settings) -> int:
    if not rows:
        print("bench: nothing was measured", file=sys.stderr)
        return 2
    facts = run_facts(plan, settings)
    print("\n" + ", ".join(f"{name} {value}" for name, value in facts.items()))
    print(table(rows))
    print()
    results = floors(rows)
    for floor in results:
        print(floor)
    for line in [device_shares(rows), *cautions(rows)]:
        print(line)
    print(f"\n{save(rows, facts)}")
    return 1 if any(floor.passed is False for floor in results) else 0


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # a second one must not break off the orderly end
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
