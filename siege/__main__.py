"""Entry point of the siege: `python -m siege`, `make siege`.

One client attacks a `ferry up` on this machine, on loopback, in one way after the other; an honest
client asks beside it. Never for longer than ten minutes. `--quick` attacks for a second each.
FERRY_* variables reach the servers.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType

from bench.processes import BenchError
from bench.report import aligned
from ferry.commands.samples import is_finished
from ferry.errors import CannotStart
from shared.errors import BadSetting
from shared.settings import Settings
from siege.attacks import NAMES, attacks
from siege.honest import Seen, honest_client
from siege.run import MODELS, Row, attacked, besieged

LONGEST_SECONDS = 600
ALONE_SECONDS = 5.0
HEADINGS = ("attack", "outcomes", "seconds", "load", "asked", "failed", "p50_ms", "p99_ms",
            "api_mib", "grown_mib", "readers_mib")  # fmt: skip


def main(arguments: Sequence[str]) -> int:
    """Attack and print; 0 when nobody noticed, 1 when somebody did, 2 when it could not be run."""
    names, seconds = parse_arguments(arguments)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
        signal.signal(number, _interrupt)
    signal.alarm(LONGEST_SECONDS)
    try:
        alone, rows = _siege(names, seconds, Settings.from_env(os.environ))
    except (BadSetting, BenchError, CannotStart) as error:
        print(f"siege: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("siege: interrupted or out of time, what it started has ended", file=sys.stderr)
        return 130
    print(f"\n{aligned([HEADINGS, *(map(_cells, rows))], 2)}\n")
    found = [f"  {row.name}: {text}" for row in rows for text in row.troubles(alone)]
    print("\n".join(found) or "nobody noticed")
    return 1 if found else 0


def parse_arguments(arguments: Sequence[str]) -> tuple[list[str], float]:
    """Return the attacks, all when none is named, and for how long each is to go on."""
    parser = argparse.ArgumentParser(prog="siege", description="Attack Ferry by one client.")
    parser.add_argument("attacks", metavar="ATTACK", nargs="*", help=f"of {', '.join(NAMES)}")
    parser.add_argument("--seconds", type=float, default=8.0, help="for each attack [8]")
    parser.add_argument("--quick", action="store_true", help="a second for each")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.attacks) - set(NAMES))
    if unknown:
        parser.error(f"unknown attack {unknown[0]!r}, known are {', '.join(NAMES)}")
    return options.attacks or list(NAMES), 1.0 if options.quick else options.seconds


def _siege(names: Sequence[str], seconds: float, settings: Settings) -> tuple[Seen, list[Row]]:
    for model in MODELS:
        if not is_finished(Path(settings.models) / model):
            raise BenchError(f"no model {model} in {settings.models}: run `ferry samples`")
    known = {attack.name: attack for attack in attacks() if attack.name in names}
    with TemporaryDirectory(prefix="ferry-siege-") as name:
        directory = Path(name)
        with (
            besieged(settings, directory) as system,
            honest_client(
                system.settings.port, system.settings.grpc_port, directory / "honest.log"
            ) as client,
        ):
            client.begin()
            time.sleep(min(seconds, ALONE_SECONDS))
            alone = client.end()
            load = os.getloadavg()[0]
            print(f"alone: p50 {alone.p50} ms, p99 {alone.p99} ms, load {load:.1f}", flush=True)
            rows = []
            for each in names:
                rows.append(attacked(system, known[each], client, seconds))
                print("  ".join(_cells(rows[-1])), flush=True)
            return alone, rows


def _cells(row: Row) -> tuple[str, ...]:
    outcomes = " ".join(f"{count} x {what}" for what, count in sorted(row.outcomes.items()))
    seen = row.seen
    return (
        row.name, outcomes or "-", f"{row.seconds:.1f}", f"{row.load:.1f}", str(seen.asked),
        str(seen.failed),
        f"{seen.p50:.1f}", f"{seen.p99:.1f}", f"{row.api_mib:.0f}", f"{row.grown_mib:.0f}",
        f"{row.readers_mib:.0f}",
    )  # fmt: skip


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
        signal.signal(number, signal.SIG_IGN)  # a second one must not break off the orderly end
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
