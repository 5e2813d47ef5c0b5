"""Requests a second beside ten open operations pages, and without any.

    python -m bench.pages [MODEL] [--pages N] [--clients N] [--seconds N] [--rounds N]

A round is four short runs of wrk: without pages, twice with them, without. What the pages take is
the median of the rounds. The servers' processor time per request tells the same with less noise,
where the machine has no more to give; what our own readers of the events take, in the browsers'
place, is none of it and told apart. A machine whose speed changes from second to second tells
neither. So the processor time that pages take each second is also measured beside few requests, so
many a second, and compared with what the servers take in all at full load. The history is written
in all runs, so its cost is measured apart.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from http.client import HTTPConnection, HTTPException, HTTPResponse
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event, Thread
from typing import NamedTuple

from bench import wrk
from bench.many_models import family_of
from bench.processes import BenchError
from bench.scenarios import SCENARIOS
from bench.servers import whole
from bench.single_requests import Request, ask
from shared.cores import default_cores
from shared.history.keys import HistoryKeys
from shared.history.recorder import Recorder
from shared.registry.catalog import Catalog
from shared.registry.registry import Registry
from shared.settings import Settings
from shared.wire.client import connect

MOST_SHARE = 0.01
"""Streams and history together take less than so much of the requests a second."""
STEADY_PER_SECOND = 50
STEADY_SECONDS = 3.0
STEADY_ROUNDS = 10
HISTORY_POINTS = 50
PAGE_TIMEOUT_SECONDS = 30.0


class Run(NamedTuple):
    """Requests a second, and the seconds of processor that each of them took."""

    per_second: float
    processor_seconds: float


class Round(NamedTuple):
    """Two runs without pages and two with them, each pair's sums."""

    without: Run
    beside: Run

    @property
    def taken(self) -> float:
        """Return the share of the requests a second that the pages took."""
        return 1.0 - self.beside.per_second / self.without.per_second

    @property
    def processor_taken(self) -> float:
        """Return the same by the processor's time per request."""
        return 1.0 - self.without.processor_seconds / self.beside.processor_seconds


def main(arguments: Sequence[str]) -> int:
    """Measure and print; return 0 when the pages take less than they may, 2 for no verdict."""
    parser = argparse.ArgumentParser(prog="pages", description=__doc__.partition("\n")[0])
    parser.add_argument("model", nargs="?", default="tiny", help="[tiny]")
    parser.add_argument("--pages", type=int, default=10, help="[10]")
    parser.add_argument("--clients", type=int, default=64, help="[64]")
    parser.add_argument("--seconds", type=int, default=2, help="of each run [2]")
    parser.add_argument("--rounds", type=int, default=8, help="[8]")
    options = parser.parse_args(arguments)
    scenario = SCENARIOS[options.model]
    with TemporaryDirectory(prefix="ferry-bench-") as name:
        directory = Path(name)
        with whole(options.model, Settings.from_env(os.environ), directory) as settings:
            request = Request(
                settings.port, scenario.path, "POST", scenario.content_type, scenario.body()
            )
            load = partial(_run, request, options.clients, options.seconds, directory)
            load()  # what is compiled, connected or cached at first is so in all rounds
            before = time.process_time()
            rounds = [_round(load, settings.port, options.pages) for _ in range(options.rounds)]
            beside = 2 * options.rounds * options.seconds
            print(f"this process, readers too, took {(time.process_time() - before) / beside:.2%} "
                  "of a core while pages were open")  # fmt: skip
            steady = [_steady_seconds(request, options.pages) for _ in range(STEADY_ROUNDS)]
            history = _history_share(settings)
    return show(rounds, steady, history, options.pages)


def _round(load: Callable[[], Run], port: int, pages: int) -> Round:
    before = load()
    with _opened(port, pages):
        beside = [load(), load()]
    return Round(_summed(before, load()), _summed(*beside))


def _run(request: Request, clients: int, seconds: int, directory: Path) -> Run:
    """Load the server; its processes are all of ours but this one and wrk, which has ended."""
    before = _servers_seconds()
    found = wrk.measure(request, clients, seconds, directory)
    assert found.answer_count, "wrk counts them"
    return Run(found.per_second, (_servers_seconds() - before) / found.answer_count)


def _steady_seconds(request: Request, pages: int) -> float:
    """Return the processor time that pages take each second, beside few requests a second."""
    without = _seconds_beside_few(request)
    with _opened(request.port, pages):
        return _seconds_beside_few(request) - without


def _seconds_beside_few(request: Request) -> float:
    connection = HTTPConnection("127.0.0.1", request.port, timeout=PAGE_TIMEOUT_SECONDS)
    before, began = _servers_seconds(), time.monotonic()
    for number in range(int(STEADY_PER_SECOND * STEADY_SECONDS)):
        ask(connection, request)
        time.sleep(max(0.0, began + number / STEADY_PER_SECOND - time.monotonic()))
    connection.close()
    return (_servers_seconds() - before) / (time.monotonic() - began)


def _servers_seconds() -> float:
    """Return the processor time of all threads of the servers, to the nanosecond."""
    servers = [pid for pid in family_of(os.getpid()) if pid != os.getpid()]
    tasks = [task for pid in servers for task in Path(f"/proc/{pid}/task").glob("*/schedstat")]
    return sum(map(_ran_seconds, tasks))


def _ran_seconds(schedstat: Path) -> float:
    try:
        return int(schedstat.read_text().split()[0]) / 1e9
    except OSError:  # it ended
        return 0.0


def _summed(one: Run, other: Run) -> Run:
    return Run(*(sum(pair) for pair in zip(one, other, strict=True)))


@contextmanager
def _opened(port: int, count: int) -> Iterator[None]:
    """Hold so many operations pages open, whose events are read; raises BenchError for fewer."""
    pages = [HTTPConnection("127.0.0.1", port, timeout=30) for _ in range(count)]
    for page in pages:
        page.request("GET", "/ops/stream")
        answer = page.getresponse()
        if answer.status != 200:  # noqa: PLR2004
            raise BenchError(f"/ops/stream: {answer.status} {answer.read(300)!r}")
        has_all = Event()
        Thread(target=_read, args=(answer, has_all), daemon=True).start()
        if not has_all.wait(PAGE_TIMEOUT_SECONDS):
            raise BenchError("/ops/stream: no event came")
    try:
        yield
    finally:
        for page in pages:
            page.close()


def _read(answer: HTTPResponse, has_all: Event) -> None:
    """Read events as long as there are any, and tell when the first is there."""
    with suppress(OSError, HTTPException, ValueError, AttributeError):  # its page was closed
        while part := answer.read1(1 << 16):
            if b"data: " in part:
                has_all.set()


def _history_share(settings: Settings) -> float:
    """Return the share of the machine that writing the history's point of each second takes."""
    client = connect(settings.redis_url)
    registry = Registry(client, settings.key_prefix)
    catalog = Catalog(registry)
    catalog.refresh()
    recorder = Recorder(client, settings.key_prefix, catalog, registry)
    began = time.monotonic()
    for _ in range(HISTORY_POINTS):
        client.delete(HistoryKeys(settings.key_prefix).writer)  # it is our turn each time
        recorder.record()
    return (time.monotonic() - began) / HISTORY_POINTS / default_cores()


def show(rounds: Sequence[Round], steady: Sequence[float], history: float, pages: int) -> int:
    """Print each round, the medians and the verdict, by the surer figure; return as `main`."""
    for each in rounds:
        print(
            f"{each.without.per_second / 2:.0f} requests/s, beside {pages} pages "
            f"{each.beside.per_second / 2:.0f}: {each.taken:+.2%}, by the processor's time per "
            f"request {each.processor_taken:+.2%}"
        )
    taken, spread = _middle([each.taken for each in rounds])
    processor, of_processor = _middle([each.processor_taken for each in rounds])
    at_full = statistics.median(
        each.without.per_second * each.without.processor_seconds / 4 for each in rounds
    )
    apart, of_apart = _middle([each / at_full for each in steady])
    print(
        f"{pages} pages take {taken:.2%} (+- {spread:.2%}) of the requests/s, {processor:.2%} "
        f"(+- {of_processor:.2%}) by the processor; {1000 * apart * at_full:.1f} ms of it each "
        f"second beside few requests, {apart:.2%} (+- {of_apart:.2%}) of the {at_full:.2f} s that "
        f"the servers take at full load; the history at most {history:.2%} of the machine; "
        f"load {os.getloadavg()[0]:.0f}"
    )
    figures = (taken, spread), (processor, of_processor), (apart, of_apart)
    share, unsure = min(figures, key=lambda each: each[1])
    if unsure > MOST_SHARE / 2:
        print("it cannot be told: the machine was not quiet")
        return 2
    holds = share + history < MOST_SHARE
    verdict = "holds" if holds else "FAILS"
    print(f"{verdict}: together {share + history:.2%}, less than {MOST_SHARE:.0%} is wanted")
    return int(not holds)


def _middle(shares: Sequence[float]) -> tuple[float, float]:
    """Return the median, and how far it may be off: its standard error, from the quartiles."""
    quarters = statistics.quantiles(shares, n=4)
    return statistics.median(shares), 0.93 * (quarters[2] - quarters[0]) / len(shares) ** 0.5


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
