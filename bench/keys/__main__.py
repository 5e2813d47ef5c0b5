"""Measures what checking API keys costs: `python -m bench.keys`, under three minutes.

Two whole Ferrys serve `tiny` side by side, one without keys and one that wants them. In each round
both are asked, one after the other and the other way round in the next, so what the machine does
besides weighs on both. Shown are the medians and quartiles of the rounds' ratios: of answers a
second, which other work on the machine disturbs, and of processor time, which it disturbs less.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from typing import NamedTuple

from bench import wrk
from bench.floors import Floor
from bench.many_models import usage_of
from bench.processes import BenchError
from bench.scenarios import SCENARIOS
from bench.servers import whole
from bench.single_requests import Request
from shared.access.api_key import ApiKey, digest, new_secret
from shared.access.key_store import KeysInRedis, add
from shared.access.keyring import KEYS_SECONDS
from shared.settings import Settings
from shared.wire.client import connect

LEAST_SHARE, MOST_TIME = 0.97, 1.03
WITHOUT, WITH = "without keys", "with keys"
FEWEST_FOR_QUARTILES = 2


class Cost(NamedTuple):
    """The answers of one measurement: how many a second, and the processor time of one."""

    per_second: float
    cpu_us: float


def main(arguments: Sequence[str]) -> int:
    """Measure and print; 0 when the floor holds for each number of clients, else 1."""
    parser = argparse.ArgumentParser(prog="keys", description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=int, default=2, help="per measurement [2]")
    parser.add_argument("--rounds", type=int, default=8, help="of both, for each count [8]")
    parser.add_argument("--clients", default="1,16,64", help="[1,16,64]")
    options = parser.parse_args(arguments)
    counts = [int(each) for each in options.clients.split(",")]
    with TemporaryDirectory(prefix="ferry-bench-") as name, servers(Path(name)) as asked:
        for request in asked.values():
            wrk.measure(request, max(counts), 1, Path(name))
        held = [
            _compare(asked, clients, options.rounds, options.seconds, Path(name))
            for clients in counts
        ]
    print(f"load of the machine: {' '.join(f'{each:.1f}' for each in os.getloadavg())}")
    return 0 if all(held) else 1


@contextmanager
def servers(directory: Path) -> Iterator[dict[str, Request]]:
    """Run both; yields how to ask each."""
    scenario, usual = SCENARIOS["tiny"], Settings.from_env(os.environ)
    asked = {}
    with ExitStack() as stack:
        for name in (WITH, WITHOUT):
            place = directory / name.replace(" ", "-")
            place.mkdir()
            settings = stack.enter_context(whole(scenario.model, usual, place))
            request = Request(
                settings.port, scenario.path, "POST", scenario.content_type, scenario.body()
            )
            asked[name] = request if name == WITHOUT else _with_key(request, settings)
        yield asked


def _with_key(request: Request, settings: Settings) -> Request:
    """Make a key, and wait until every process of the API wants it."""
    key_id, secret = new_secret()
    client = connect(settings.redis_url)
    fields = {"id": key_id, "name": "app", "sha256": digest(secret)}
    add(KeysInRedis(client, settings.key_prefix), ApiKey.model_validate(fields))
    client.close()
    time.sleep(2 * KEYS_SECONDS)
    return replace(request, headers=(("X-API-Key", secret),))


def _compare(
    asked: dict[str, Request], clients: int, rounds: int, seconds: int, directory: Path
) -> bool:
    """Print two lines for so many clients; tell whether both floors hold."""
    found: dict[str, list[Cost]] = {name: [] for name in asked}
    for number in range(rounds):
        for name in list(asked)[:: -1 if number % 2 else 1]:
            found[name].append(_measure(asked[name], clients, seconds, directory))
    held = []
    for field, what, unit in (
        ("per_second", "answers a second", "{:.0f}/s"),
        ("cpu_us", "processor time of one", "{:.0f} us"),
    ):
        figures = {name: [getattr(each, field) for each in found[name]] for name in asked}
        ratios = [ours / theirs for ours, theirs in zip(*figures.values(), strict=True)]
        low, _, high = quantiles(ratios) if len(ratios) >= FEWEST_FOR_QUARTILES else ratios * 3
        is_time = field == "cpu_us"
        limit = MOST_TIME if is_time else LEAST_SHARE
        name = f"tiny @{clients} with keys: {what}, of without"
        floor = Floor(name, median(ratios), limit, at_most=is_time)
        ours, theirs = (unit.format(median(each)) for each in figures.values())
        print(f"{floor}  ({low:.3f} to {high:.3f}; {ours} of {theirs})", flush=True)
        held.append(bool(floor.passed))
    return all(held)


def _measure(request: Request, clients: int, seconds: int, directory: Path) -> Cost:
    before = _cpu_seconds()
    measured = wrk.measure(request, clients, seconds, directory)
    if measured.error_count or not measured.answer_count:
        raise BenchError(f"{measured.error_count} requests failed")
    return Cost(measured.per_second, (_cpu_seconds() - before) / measured.answer_count * 1e6)


def _cpu_seconds() -> float:
    """Return the processor time of all servers; wrk, whose time is ours once it has ended, is none.

    Who is not asked idles meanwhile.
    """
    return usage_of(os.getpid()).cpu_seconds - sum(os.times()[:4])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
