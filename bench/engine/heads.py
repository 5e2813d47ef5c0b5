"""Requests whose heads repeat against such as differ each time, by few and by many clients.

    python -m bench.engine.heads [--clients N N ...] [--seconds N] [--rounds N]

One Ferry answers `tiny`, in turn with heads that repeat and with a new trace id in each, as behind
a proxy. Its exit code is 1 where a floor does not hold.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import NamedTuple

from bench import wrk
from bench.engine.components import processor_seconds
from bench.floors import Floor
from bench.processes import BenchError
from bench.scenarios import SCENARIOS
from bench.servers import whole
from bench.single_requests import Request
from shared.settings import Settings

REPEATING, DIFFERING = "repeating", "differing"
TRACE = ("traceparent", f"00-0af7651916cd43dd{wrk.NUMBER}8448eb21-b7ad6b7169203331-01")
MOST_COST, LEAST_RATE, MOST_SPREAD = 1.2, 0.9, 4.0
FEW, MANY = 64, 256


class Load(NamedTuple):
    """One measurement: the API's microseconds of processor are of each request."""

    per_second: float
    api_us: float
    p50_ms: float
    p99_ms: float


def main(arguments: Sequence[str]) -> int:
    """Measure in turn, print the medians, and return whether a floor fails."""
    parser = argparse.ArgumentParser(prog="heads", description=__doc__.partition("\n")[0])
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 16, FEW, MANY])
    parser.add_argument("--seconds", type=int, default=3, help="per measurement [3]")
    parser.add_argument("--rounds", type=int, default=5, help="whose medians count [5]")
    options = parser.parse_args(arguments)
    tiny, found = SCENARIOS["tiny"], dict[tuple[int, str], list[Load]]()
    with TemporaryDirectory(prefix="ferry-bench-") as name:
        directory = Path(name)
        with whole("tiny", Settings.from_env(os.environ), directory) as settings:
            request = Request(settings.port, tiny.path, "POST", tiny.content_type, tiny.body())
            asked = {REPEATING: request, DIFFERING: replace(request, headers=(TRACE,))}
            measure(request, FEW, 1, directory)
            for _ in range(options.rounds):
                for clients in options.clients:
                    for heads, each in asked.items():
                        load = measure(each, clients, options.seconds, directory)
                        found.setdefault((clients, heads), []).append(load)
    loads = {case: Load(*map(median, zip(*each, strict=True))) for case, each in found.items()}
    print("clients  heads      requests/s  API us  p50 ms  p99 ms")
    for (clients, heads), one in loads.items():
        print(f"{clients:7}  {heads:9}  {one.per_second:10.0f}  {one.api_us:6.0f}  "
              f"{one.p50_ms:6.2f}  {one.p99_ms:6.2f}")  # fmt: skip
    print(f"load {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores")
    wanted = floors(loads)
    print(*wanted, sep="\n")
    return int(any(floor.passed is False for floor in wanted))


def measure(request: Request, clients: int, seconds: int, directory: Path) -> Load:
    """Ask for so long; raises BenchError when a request fails."""
    before, _ = processor_seconds()
    measured = wrk.measure(request, clients, seconds, directory)
    if measured.error_count or not measured.answer_count:
        raise BenchError(f"{measured.error_count} requests failed")
    spent = processor_seconds()[0] - before
    p50, p99 = (1e3 * (seconds or 0.0) for seconds in (measured.p50_seconds, measured.p99_seconds))
    return Load(measured.per_second, 1e6 * spent / measured.answer_count, p50, p99)


def floors(loads: dict[tuple[int, str], Load]) -> list[Floor]:
    """Return the floors with the ratios that the loads give them."""
    few, many = loads.get((FEW, REPEATING)), loads.get((MANY, REPEATING))
    differing = loads.get((FEW, DIFFERING))
    return [
        Floor(
            f"heads that differ @{FEW}: API's processor, of those that repeat",
            few and differing and differing.api_us / few.api_us, MOST_COST, at_most=True,
        ),
        Floor(f"@{MANY}: requests/s of those @{FEW}",
              few and many and many.per_second / few.per_second, LEAST_RATE),
        Floor(f"@{MANY}: p99 in p50s", many and many.p99_ms / many.p50_ms, MOST_SPREAD,
              at_most=True),
    ]  # fmt: skip


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
