"""Bulk prediction beside the bare model's speed, and what a single request waits for meanwhile.

    python -m bench.bulk [MODEL] [--rows N] [--rounds N]

Each round measures the bare batched forward pass in a process of its own, then `ferry predict`'s
function over a file of rows, then single requests alone and beside such a job.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from http.client import HTTPConnection
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event, Thread, Timer
from typing import NamedTuple

from bench.limits import bare_limits
from bench.measurements import Measurement
from bench.scenarios import SCENARIOS, SENTENCE
from bench.servers import whole
from bench.single_requests import Request, ask
from jobs.bulk.bulk import Bulk, Progress, predict
from shared.settings import Settings
from shared.wire.client import connect

FORWARD_SECONDS = 6.0
ASKED_ALONE_SECONDS = 8.0

Limits = Mapping[str, Callable[[float], Measurement]]


class Round(NamedTuple):
    """Rows a second, and milliseconds of single requests: median and 99th percentile."""

    bare: float
    bulk: float
    alone_ms: tuple[float, float]
    beside_ms: tuple[float, float]


def main(arguments: Sequence[str]) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="bulk", description=__doc__.partition("\n")[0])
    parser.add_argument("model", nargs="?", default="sentiment", help="[sentiment]")
    parser.add_argument("--rows", type=int, default=3000, help="of a job [3000]")
    parser.add_argument("--rounds", type=int, default=3, help="[3]")
    options = parser.parse_args(arguments)
    settings = Settings.from_env(os.environ)
    with TemporaryDirectory(prefix="ferry-bench-") as name:
        directory = Path(name)
        rows = write_rows(options.model, directory, options.rows)
        pictures = SCENARIOS[options.model].pictures
        with (
            whole(options.model, settings, directory) as served,
            bare_limits(options.model, served.models, directory, pictures=pictures) as limits,
        ):
            rounds = [
                measure(options.model, served, rows, directory, limits)
                for _ in range(options.rounds)
            ]
    show(rounds)
    return 0


def write_rows(model: str, directory: Path, count: int) -> Path:
    """Write what the model's scenario sends, so many times; return the file or folder."""
    scenario = SCENARIOS[model]
    if scenario.pictures:
        folder = directory / "pictures"
        folder.mkdir()
        for number in range(count):
            (folder / f"{number:06}.jpg").write_bytes(scenario.body())
        return folder
    file = directory / "rows.ndjson"
    row = SENTENCE if model == "sentiment" else json.loads(scenario.body())["inputs"][0]["data"]
    file.write_text(f"{json.dumps(row)}\n" * count)
    return file


def measure(model: str, settings: Settings, rows: Path, directory: Path, limits: Limits) -> Round:
    """Run one round; of the bare limits the highest counts."""
    scenario = SCENARIOS[model]
    request = Request(settings.port, scenario.path, "POST", scenario.content_type, scenario.body())
    bare = max(limit(FORWARD_SECONDS).per_second for limit in limits.values())
    bulk = _bulk(model, settings, rows, directory)
    over = Event()
    timer = Timer(ASKED_ALONE_SECONDS, over.set)
    timer.start()
    alone = _asked_until(over, request)
    over.clear()

    def work() -> None:
        _bulk(model, settings, rows, directory)
        over.set()

    job = Thread(target=work)
    job.start()
    beside = _asked_until(over, request)
    job.join()
    return Round(bare, bulk, alone, beside)


def _bulk(model: str, settings: Settings, rows: Path, directory: Path) -> float:
    """Return the rows a second of one job."""
    output, done = directory / "answers.ndjson", list[Progress]()
    began = time.monotonic()
    with connect(settings.redis_url) as client:
        job = Bulk(model, rows, output, restart=True)
        finished = predict(job, client, settings, done.append)
    assert finished.errors == 0, "the scenario's own body is a good one"
    return finished.done / (time.monotonic() - began)


def _asked_until(over: Event, request: Request) -> tuple[float, float]:
    """Ask one request after the other; return median and 99th percentile in milliseconds."""
    taken = []
    connection = HTTPConnection("127.0.0.1", request.port, timeout=60)
    while not over.is_set():
        began = time.monotonic()
        ask(connection, request)
        taken.append(1000 * (time.monotonic() - began))
    connection.close()
    cuts = statistics.quantiles(taken, n=100)
    return cuts[49], cuts[98]


def show(rounds: list[Round]) -> None:
    """Print each round and the medians of their ratios."""
    for each in rounds:
        print(
            f"bare {each.bare:.0f} rows/s, bulk {each.bulk:.0f} ({each.bulk / each.bare:.2f}); "
            f"single alone p50 {each.alone_ms[0]:.1f} p99 {each.alone_ms[1]:.1f} ms, "
            f"beside it p50 {each.beside_ms[0]:.1f} p99 {each.beside_ms[1]:.1f} ms"
        )
    print(f"bulk / bare: {statistics.median(each.bulk / each.bare for each in rounds):.2f}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
