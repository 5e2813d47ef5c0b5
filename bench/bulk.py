"""Bulk prediction beside the bare model's speed, and what a single request waits for meanwhile.

    python -m bench.bulk [MODEL] [--rows N] [--rounds N]
    python -m bench.bulk --embeddings [--device SECONDS] [--rounds N]

Each round measures the bare batched forward pass in a process of its own, then `ferry predict`'s
function over a file of rows, then single requests alone and beside such a job. With `--embeddings`
a round is single texts alone, and beside requests for 2,048 embeddings, one after the other. With
a `--device` every batch takes so long, whatever else the machine does.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
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
FORWARD_SECONDS = 6.0
ASKED_ALONE_SECONDS = 8.0

Limits = Mapping[str, Callable[[float], Measurement]]


class Round(NamedTuple):
    """Rows a second, and milliseconds of single requests: median and 99th percentile."""

    bare: float
    bulk: float
    alone_ms: tuple[float, float]
    beside_ms: tuple[float, float]

    @property
    def batches_longer(self) -> float:
        """Return by how many bare batches the 99th percentile is longer beside a job."""
        batch_ms = 1000 * BATCH_ROWS / self.bare
        return (self.beside_ms[1] - self.alone_ms[1]) / batch_ms


class EmbeddingRound(NamedTuple):
    """Texts a second, milliseconds of a full batch's forward pass, and single texts as in Round."""

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
        if options.embeddings:
            if options.device:
                settings = replace(settings, models=write_device(directory, options.device))
            with whole(EMBEDDER, settings, directory) as served:
                rounds = [measure_embeddings(served.port) for _ in range(options.rounds)]
            return show_embeddings(rounds)
        rows = write_rows(options.model, directory, options.rows)
        pictures = SCENARIOS[options.model].pictures
        with (
            whole(options.model, settings, directory) as served,
            bare_limits(options.model, served.models, directory, pictures=pictures) as limits,
        ):
            measured = [
                measure(options.model, served, rows, directory, limits)
                for _ in range(options.rounds)
            ]
    return show(measured)


def write_device(directory: Path, seconds: float) -> str:
    """Write a model that takes texts and so long for each batch; return its repository."""
    model = directory / "device" / EMBEDDER
    (model / "1").mkdir(parents=True)
    (model / "config.pbtxt").write_text(DEVICE_CONFIG)
    (model / "1" / "model.py").write_text(DEVICE.format(seconds=seconds))
    return str(model.parent)


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
    alone = _asked_alone(over, request)

    def work() -> None:
        _bulk(model, settings, rows, directory)
        over.set()

    job = Thread(target=work)
    job.start()
    beside = _asked_until(over, request)
    job.join()
    return Round(bare, bulk, alone, beside)


def measure_embeddings(port: int) -> EmbeddingRound:
    """Run one round with many embeddings."""
    body = SCENARIOS["sentiment"].body()
    single = Request(port, f"/predict/{EMBEDDER}", "POST", "application/json", body)
    texts = [f"{number} {SENTENCE}" for number in range(MANY_TEXTS)]
    asked = json.dumps({"model": EMBEDDER, "input": texts, "encoding_format": "base64"}).encode()
    patient = (("X-Request-Timeout", "600"),)
    many = Request(port, "/v1/embeddings", "POST", "application/json", asked, patient)
    over = Event()
    alone, before = _asked_alone(over, single), _full_batches(port)
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
    beside = _asked_until(over, single)
    job.join()
    count, ns = [now - then for now, then in zip(_full_batches(port), before, strict=True)]
    return EmbeddingRound(counts[0], ns / 1e6 / count, alone, beside)


def _full_batches(port: int) -> tuple[int, int]:
    """Return how many of the largest batches were run, and the nanoseconds of their passes."""
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    found = json.loads(ask(connection, Request(port, f"/v2/models/{EMBEDDER}/stats")))
    connection.close()
    sizes = found["model_stats"][0]["batch_stats"]
    full = [each["compute_infer"] for each in sizes if each["batch_size"] == BATCH_ROWS]
    return (full[0]["count"], full[0]["ns"]) if full else (0, 0)


def _bulk(model: str, settings: Settings, rows: Path, directory: Path) -> float:
    """Return the rows a second of one job."""
    output, done = directory / "answers.ndjson", list[Progress]()
    began = time.monotonic()
    with connect(settings.redis_url) as client:
        job = Bulk(model, rows, output, restart=True)
        finished = predict(job, client, settings, done.append)
    assert finished.errors == 0, "the scenario's own body is a good one"
    return finished.done / (time.monotonic() - began)


def _asked_alone(over: Event, request: Request) -> tuple[float, float]:
    """Ask as `_asked_until`, for a while; `over` is as it was."""
    timer = Timer(ASKED_ALONE_SECONDS, over.set)
    timer.start()
    found = _asked_until(over, request)
    over.clear()
    return found


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
    """Print each round and the medians of their ratios."""
    for each in rounds:
        print(
            f"bare {each.bare:.0f} rows/s, bulk {each.bulk:.0f} ({each.bulk / each.bare:.2f}); "
            f"single alone p50 {each.alone_ms[0]:.1f} p99 {each.alone_ms[1]:.1f} ms, "
            f"beside it p50 {each.beside_ms[0]:.1f} p99 {each.beside_ms[1]:.1f} ms: "
            f"{each.batches_longer:.2f} batches longer"
        )
    share = statistics.median(each.bulk / each.bare for each in rounds)
    longer = statistics.median(each.batches_longer for each in rounds)
    print(f"bulk / bare: {share:.2f}, p99 {longer:.2f} batches longer")
    return max(
        _verdict(share >= LEAST_BULK, f"bulk / bare {share:.2f}, at least {LEAST_BULK}"),
        _verdict(longer <= MOST_BATCHES, f"p99 {longer:.2f} of 1 batch longer at most"),
    )


def _verdict(holds: bool, what: str) -> int:
    print(f"{'holds' if holds else 'FAILS'}: {what}; load {os.getloadavg()[0]:.0f}")
    return int(not holds)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
