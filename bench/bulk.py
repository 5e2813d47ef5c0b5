"""Bulk prediction beside the bare model's speed, and what a single request waits for meanwhile.

    python -m bench.bulk [MODEL | --device SECONDS] [--rows N] [--rounds N]
    python -m bench.bulk --embeddings [--device SECONDS] [--rounds N]

Each round measures the bare batched forward pass and what `ferry predict` does over a file of rows,
in turn and each in a process of its own, then single requests alone and beside such a job. With
`--embeddings` a round is single texts alone, and beside requests for 2,048 embeddings, one after
the other. With a `--device` every batch takes so long, whatever else the machine does.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from http.client import HTTPConnection
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event, Thread, Timer
from typing import NamedTuple

from bench.limits import bare_limits
from bench.processes import Child, running
from bench.scenarios import SCENARIOS, SENTENCE, Scenario
from bench.servers import whole
from bench.single_requests import Request, ask
from shared.settings import Settings

EMBEDDER = "sentences"
BATCH_ROWS = 32
DEVICE_CONFIG = """
backend: "python" max_batch_size: 32 instance_group [ { count: 1 kind: KIND_CPU } ]
input [ { name: "text" data_type: TYPE_STRING dims: [1] } ]
output [ { name: "vector" data_type: TYPE_FP32 dims: [384] } ]
"""
DEVICE = """
import time

import numpy as np


class Model:
    def forward(self, inputs):
        time.sleep({seconds})
        return {{"vector": np.ones((len(inputs["text"]), 384), np.float32)}}
"""
LEAST_BULK = 0.9
MOST_BATCHES, MOST_BATCHES_BESIDE_MANY = 1.0, 2.0
"""The floors: a job's part of the bare speed; by how many batches single requests are longer."""
MANY_TEXTS = 2048
MANY_SECONDS = 30.0
"""So long requests for many embeddings follow each other, and the last of them is waited for."""
FORWARD_SECONDS = 4.0
TURNS = 3
"""So often a round measures the bare model and a job in turn: the machine's speed varies."""
ASKED_SECONDS = 15.0
JOB_SECONDS = 600.0


class Round(NamedTuple):
    """Rows a second, milliseconds of a full batch's pass beside single requests, and of these."""

    bare: float
    bulk: float
    batch_ms: float
    alone_ms: list[float]
    beside_ms: list[float]

    @property
    def batches_longer(self) -> float:
        """Return by how many batches the 99th percentile is longer beside a job."""
        longer_ms = percentiles(self.beside_ms)[1] - percentiles(self.alone_ms)[1]
        return longer_ms / self.batch_ms


class EmbeddingRound(NamedTuple):
    """Texts a second, milliseconds of a full batch's pass, and of single texts: median and p99."""

    per_second: float
    batch_ms: float
    alone_ms: tuple[float, float]
    beside_ms: tuple[float, float]

    @property
    def batches_longer(self) -> tuple[float, float]:
        """Return by how many batches the median and the 99th percentile are longer."""
        p50, p99 = [
            (beside - alone) / self.batch_ms
            for beside, alone in zip(self.beside_ms, self.alone_ms, strict=True)
        ]
        return p50, p99


def main(arguments: Sequence[str]) -> int:
    """Measure and print; return 0 where the floors hold."""
    parser = argparse.ArgumentParser(prog="bulk", description=__doc__.partition("\n")[0])
    parser.add_argument("model", nargs="?", default="sentiment", help="[sentiment]")
    parser.add_argument("--rows", type=int, default=3000, help="of a job [3000]")
    parser.add_argument("--rounds", type=int, default=3, help="[3]")
    parser.add_argument("--embeddings", action="store_true", help="beside them, by sentences")
    parser.add_argument("--device", type=float, help="seconds of each batch, for no model at all")
    options = parser.parse_args(arguments)
    settings = Settings.from_env(os.environ)
    with TemporaryDirectory(prefix="ferry-bench-") as name:
        directory = Path(name)
        model = EMBEDDER if options.embeddings or options.device else options.model
        if options.device:
            settings = replace(settings, models=write_device(directory, options.device))
        if options.embeddings:
            with whole(model, settings, directory) as served:
                embedded = [measure_embeddings(served.port) for _ in range(options.rounds)]
            return show_embeddings(embedded)
        scenario = SCENARIOS.get(model) or replace(SCENARIOS["sentiment"], path=f"/predict/{model}")
        rows = write_rows(scenario, directory, options.rows)
        with (
            whole(model, settings, directory) as served,
            bare_speed(model, served, directory, options.device) as bare,
            running_jobs(model, served, rows, directory) as run_job,
        ):
            request = Request(
                served.port, scenario.path, "POST", scenario.content_type, scenario.body()
            )
            measured = [measure(model, request, bare, run_job) for _ in range(options.rounds)]
    return show(measured)


@contextmanager
def bare_speed(
    model: str, served: Settings, directory: Path, device_seconds: float | None
) -> Iterator[Callable[[], float]]:
    """Yield what returns the bare model's rows a second: of several limits the highest."""
    if device_seconds:
        yield lambda: BATCH_ROWS / device_seconds
        return
    pictures = SCENARIOS[model].pictures
    with bare_limits(model, served.models, directory, pictures=pictures) as limits:
        yield lambda: max(limit(FORWARD_SECONDS).per_second for limit in limits.values())


@contextmanager
def running_jobs(
    model: str, served: Settings, rows: Path, directory: Path
) -> Iterator[Callable[[], float]]:
    """Yield what runs one job, and returns its rows a second."""
    log_file = directory / "job.log"
    command = [
        sys.executable, "-m", "bench.children.bulk_job", served.redis_url, model, str(rows),
        str(directory / "answers.ndjson"),
    ]  # fmt: skip
    with running(command, os.environ, log_file, piped=True) as process:
        child = Child(process, log_file)
        child.answer(JOB_SECONDS)

        def run_job() -> float:
            child.tell("job")
            return float(child.answer(JOB_SECONDS))

        yield run_job


def write_device(directory: Path, seconds: float) -> str:
    """Write a model that takes texts and so long for each batch; return its repository."""
    model = directory / "device" / EMBEDDER
    (model / "1").mkdir(parents=True)
    (model / "config.pbtxt").write_text(DEVICE_CONFIG)
    (model / "1" / "model.py").write_text(DEVICE.format(seconds=seconds))
    return str(model.parent)


def write_rows(scenario: Scenario, directory: Path, count: int) -> Path:
    """Write what a scenario sends, so many times; return the file or folder."""
    if scenario.pictures:
        folder = directory / "pictures"
        folder.mkdir()
        for number in range(count):
            (folder / f"{number:06}.jpg").write_bytes(scenario.body())
        return folder
    file = directory / "rows.ndjson"
    sent = json.loads(scenario.body())
    row = sent["text"] if "text" in sent else sent["inputs"][0]["data"]
    file.write_text(f"{json.dumps(row)}\n" * count)
    return file


def measure(
    model: str, request: Request, bare_speed: Callable[[], float], run_job: Callable[[], float]
) -> Round:
    """Run one round."""
    turns = [(bare_speed(), run_job()) for _ in range(TURNS)]
    bare, bulk = [statistics.median(each) for each in zip(*turns, strict=True)]
    over = Event()
    alone, before = _asked_alone(over, request), _full_batches(request.port, model)

    def work() -> None:
        ends_at = time.monotonic() + ASKED_SECONDS
        while time.monotonic() < ends_at:
            run_job()
        over.set()

    job = Thread(target=work)
    job.start()
    beside = _asked_until(over, request)
    job.join()
    return Round(bare, bulk, _full_batch_ms(request.port, model, before), alone, beside)


def measure_embeddings(port: int) -> EmbeddingRound:
    """Run one round with many embeddings."""
    body = SCENARIOS["sentiment"].body()
    single = Request(port, f"/predict/{EMBEDDER}", "POST", "application/json", body)
    texts = [f"{number} {SENTENCE}" for number in range(MANY_TEXTS)]
    asked = json.dumps({"model": EMBEDDER, "input": texts, "encoding_format": "base64"}).encode()
    patient = (("X-Request-Timeout", "600"),)
    many = Request(port, "/v1/embeddings", "POST", "application/json", asked, patient)
    over = Event()
    alone, before = percentiles(_asked_alone(over, single)), _full_batches(port, EMBEDDER)
    counts: list[float] = []

    def work() -> None:
        began = time.monotonic()
        connection = HTTPConnection("127.0.0.1", port, timeout=600)
        while (seconds := time.monotonic() - began) < MANY_SECONDS:
            ask(connection, many)
            counts.append(MANY_TEXTS)
        connection.close()
        counts[:] = [sum(counts) / seconds]
        over.set()

    job = Thread(target=work)
    job.start()
    beside = percentiles(_asked_until(over, single))
    job.join()
    return EmbeddingRound(counts[0], _full_batch_ms(port, EMBEDDER, before), alone, beside)


def _full_batch_ms(port: int, model: str, before: tuple[int, int]) -> float:
    """Return the mean of a full batch's pass since then, in milliseconds."""
    now = _full_batches(port, model)
    return (now[1] - before[1]) / 1e6 / (now[0] - before[0])


def _full_batches(port: int, model: str) -> tuple[int, int]:
    """Return how many batches of BATCH_ROWS were run, and the nanoseconds of their passes."""
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    found = json.loads(ask(connection, Request(port, f"/v2/models/{model}/stats")))
    connection.close()
    sizes = found["model_stats"][0]["batch_stats"]
    full = [each["compute_infer"] for each in sizes if each["batch_size"] == BATCH_ROWS]
    return (full[0]["count"], full[0]["ns"]) if full else (0, 0)


def _asked_alone(over: Event, request: Request) -> list[float]:
    """Ask as `_asked_until`, for a while; `over` is as it was."""
    timer = Timer(ASKED_SECONDS, over.set)
    timer.start()
    found = _asked_until(over, request)
    over.clear()
    return found


def _asked_until(over: Event, request: Request) -> list[float]:
    """Ask one request after the other; return the milliseconds of each but the first."""
    taken = []
    connection = HTTPConnection("127.0.0.1", request.port, timeout=60)
    ask(connection, request)
    while not over.is_set():
        began = time.monotonic()
        ask(connection, request)
        taken.append(1000 * (time.monotonic() - began))
    connection.close()
    return taken


def percentiles(samples: list[float]) -> tuple[float, float]:
    """Return the median and the 99th percentile."""
    cuts = statistics.quantiles(samples, n=100, method="inclusive")
    return cuts[49], cuts[98]


def show_embeddings(rounds: list[EmbeddingRound]) -> int:
    """Print each round and the median of how many batches longer a single text waits."""
    for each in rounds:
        print(
            f"{each.per_second:.0f} texts/s, a batch {each.batch_ms:.1f} ms; "
            f"single alone p50 {each.alone_ms[0]:.1f} p99 {each.alone_ms[1]:.1f} ms, beside it "
            f"p50 {each.beside_ms[0]:.1f} p99 {each.beside_ms[1]:.1f} ms: "
            f"{each.batches_longer[0]:.2f} and {each.batches_longer[1]:.2f} batches longer"
        )
    p50, p99 = [statistics.median(it.batches_longer[place] for it in rounds) for place in (0, 1)]
    print(f"batches longer: p50 {p50:.2f}, p99 {p99:.2f}; load {os.getloadavg()[0]:.0f}")
    return _verdict(p99 <= MOST_BATCHES_BESIDE_MANY, f"p99 {p99:.2f} of 2 batches longer at most")


def show(rounds: list[Round]) -> int:
    """Print each round, the median of their ratios, and what all single requests waited."""
    whole = Round(
        statistics.median(each.bare for each in rounds),
        statistics.median(each.bulk for each in rounds),
        statistics.median(each.batch_ms for each in rounds),
        [sample for each in rounds for sample in each.alone_ms],
        [sample for each in rounds for sample in each.beside_ms],
    )
    for each in [*rounds, whole]:
        alone, beside = percentiles(each.alone_ms), percentiles(each.beside_ms)
        print(
            f"{'together' if each is whole else 'round'}: bare {each.bare:.0f} rows/s, "
            f"bulk {each.bulk:.0f} ({each.bulk / each.bare:.2f}); a batch {each.batch_ms:.1f} ms; "
            f"{len(each.alone_ms)} single alone p50 {alone[0]:.1f} p99 {alone[1]:.1f} ms, "
            f"{len(each.beside_ms)} beside it p50 {beside[0]:.1f} p99 {beside[1]:.1f} ms: "
            f"{each.batches_longer:.2f} batches longer"
        )
    share = statistics.median(each.bulk / each.bare for each in rounds)
    longer = whole.batches_longer
    return max(
        _verdict(share >= LEAST_BULK, f"bulk / bare {share:.2f}, at least {LEAST_BULK}"),
        _verdict(longer <= MOST_BATCHES, f"p99 {longer:.2f} of 1 batch longer at most"),
    )


def _verdict(holds: bool, what: str) -> int:
    print(f"{'holds' if holds else 'FAILS'}: {what}; load {os.getloadavg()[0]:.0f}")
    return int(not holds)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
