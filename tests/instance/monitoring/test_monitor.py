"""An instance's monitor: what it counts, when, and what it leaves alone."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_backend import FakeBackend, fake_spec
from waiting import wait_until

from shared.datatypes import Array
from shared.drift.counts import DriftCounts
from shared.drift.reference import Reference, histogram, reference_of
from shared.errors import RedisUnavailable
from shared.messages import InferRequest, Tensor
from shared.model_spec import ModelSpec, TensorSpec, TextInput
from shared.registry.registry import Registry
from shared.request_queue.claimed import Claimed
from shared.settings import Settings
from shared.wire.client import connect
from worker.instance.batch import answer_batch
from worker.instance.monitoring import monitor as module
from worker.instance.monitoring.monitor import Monitor
from worker.instance.monitoring.samples import Samples
from worker.optimise.references import Signals
from worker.optimise.rows import Batch
from worker.repository.config.parameters import SampleWish

RANDOM = np.random.default_rng(4)
NUMBERS = fake_spec(dims=(2,))
TEXTS = ModelSpec(
    name="fake", version="1", platform="fake", max_batch_size=32,
    inputs=(TensorSpec(name="x", datatype="INT64", dims=(-1,), ragged=True),),
    outputs=(TensorSpec(name="y", datatype="FP32", dims=(3,)),),
    text=TextInput(tokenizer="t", max_length=99),
)  # fmt: skip


class Watched:
    """A monitor over a directory of the test's own, and what it counted."""

    def __init__(self, settings: Settings, directory: Path) -> None:
        self._settings = settings
        self.directory = directory
        self.client = connect(settings.redis_url)
        self.monitors: list[Monitor] = []

    def begin(self, spec: ModelSpec, samples: Samples | None = None) -> Monitor:
        counts = DriftCounts(self.client, self._settings.key_prefix)
        monitor = Monitor(spec, self.directory, counts, self.registry, samples)
        self.monitors.append(monitor)
        return monitor

    def record(self, reference: dict[str, Any]) -> Reference:
        (self.directory / "verify.json").write_text(json.dumps({"reference": reference}))
        return Reference.of(reference)

    def counted(self, reference: Reference) -> dict[str, int]:
        counts = DriftCounts(self.client, self._settings.key_prefix)
        (found,) = counts.latest([("fake/1", reference)])
        return {name: int(each.sum()) for name, each in found.items()}

    @property
    def registry(self) -> Registry:
        return Registry(self.client, self._settings.key_prefix)


@pytest.fixture
def watched(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Watched]:
    monkeypatch.setattr(module, "EACH_SECONDS", 0.02)
    monkeypatch.setattr(module, "REFERENCE_LOOK_SECONDS", 0.0)
    watched = Watched(settings, tmp_path)
    yield watched
    for monitor in watched.monitors:
        monitor.close()
    watched.client.close()


def reference_for(spec: ModelSpec, *batches: Array) -> dict[str, Any]:
    signals = Signals(spec)
    for rows in batches:
        answer = {"y": answers(rows)}
        signals.add(Batch({"x": rows}, frozenset(), len(rows)), answer)
    return signals.as_json()


def answers(rows: Array) -> Array:
    return np.stack([rows.sum(axis=1), rows.max(axis=1), -rows.sum(axis=1)], axis=1)[:, :2].astype(
        np.float32
    )


def request(number: int, rows: Array) -> Claimed:
    tensors = (Tensor.of("x", rows),)
    body = InferRequest(str(number), len(rows), tensors).encode()
    return Claimed(str(number), len(rows), 1, 0.0, body)


def answer(
    monitor: Monitor, spec: ModelSpec, batch: Sequence[Array],
    model: Callable[..., dict[str, Array]] = lambda inputs: {"y": answers(inputs["x"])},
) -> None:  # fmt: skip
    claimed = [request(number, rows) for number, rows in enumerate(batch)]
    answer_batch(claimed, spec, FakeBackend(model), "i", offer=monitor.offer)


def normal(rows: int) -> Array:
    return RANDOM.normal(size=(rows, 2)).astype(np.float32)


def test_each_row_is_counted_once_in_each_signal(watched: Watched) -> None:
    reference = watched.record(reference_for(NUMBERS, normal(300)))
    monitor = watched.begin(NUMBERS)

    for _ in range(3):
        answer(monitor, NUMBERS, [normal(2), normal(1), normal(4)])
    monitor.close()

    assert watched.counted(reference) == dict.fromkeys(reference.signals, 21)
    assert {"mean", "spread", "column_1", "prediction", "confidence"} <= reference.signals.keys()


def test_what_a_model_writes_into_its_input_is_not_counted(watched: Watched) -> None:
    reference = watched.record(reference_for(NUMBERS, normal(300)))
    monitor = watched.begin(NUMBERS)

    def spoils(inputs: dict[str, Array]) -> dict[str, Array]:
        found = answers(inputs["x"])
        inputs["x"] += 1000
        return {"y": found}

    answer(monitor, NUMBERS, [normal(5), normal(5)], spoils)
    monitor.close()

    (found,) = DriftCounts(watched.client, watched._settings.key_prefix).latest(
        [("fake/1", reference)]
    )
    assert found["mean"].sum() == 10 and found["mean"][-1] < 2


def test_a_request_that_fails_is_not_counted(watched: Watched) -> None:
    reference = watched.record(reference_for(NUMBERS, normal(300)))
    monitor = watched.begin(NUMBERS)

    def raises(inputs: dict[str, Array]) -> dict[str, Array]:
        if (inputs["x"] == 13).any():
            raise ValueError("13")
        return {"y": answers(inputs["x"])}

    answer(monitor, NUMBERS, [normal(1), np.full((1, 2), 13, np.float32), normal(1)], raises)
    monitor.close()

    assert watched.counted(reference)["mean"] == 2


def test_a_models_single_rows_are_counted_without_batches(watched: Watched) -> None:
    spec = fake_spec(dims=(2,), max_batch_size=0)
    signals = Signals(spec)
    for row in normal(300):
        signals.add(Batch({"x": row}, frozenset(), 1), {"y": row * 2})
    reference = watched.record(signals.as_json())
    monitor = watched.begin(spec)

    claimed = []
    for number, row in enumerate(normal(4)):
        body = InferRequest(str(number), 1, (Tensor.of("x", row),)).encode()
        claimed.append(Claimed(str(number), 1, 1, 0.0, body))
    for item in claimed:
        answer_batch([item], spec, FakeBackend(), "i", offer=monitor.offer)
    monitor.close()

    assert watched.counted(reference) == dict.fromkeys(reference.signals, 4)


def test_texts_of_all_lengths_are_counted(watched: Watched) -> None:
    def texts(count: int) -> list[Array]:
        return [np.arange(1, 2 + RANDOM.integers(1, 90))[None] for _ in range(count)]

    def model(inputs: dict[str, Array]) -> dict[str, Array]:
        return {"y": np.repeat(inputs["x"][:, :1], 3, axis=1).astype(np.float32)}

    signals = Signals(TEXTS)
    for ids in texts(300):
        signals.add(Batch({"x": ids}, frozenset(), 1), model({"x": ids}))
    reference = watched.record(signals.as_json())
    monitor = watched.begin(TEXTS)

    answer(monitor, TEXTS, texts(30), model)
    answer(monitor, TEXTS, texts(30), model)
    monitor.close()

    assert watched.counted(reference) == dict.fromkeys(reference.signals, 60)
    assert "tokens" in reference.signals


def test_a_second_has_a_bound_whatever_comes(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "EACH_SECONDS", 60.0)
    reference = watched.record(reference_for(NUMBERS, normal(300)))
    monitor = watched.begin(NUMBERS)

    for _ in range(module.SECOND_ROWS):
        answer(monitor, NUMBERS, [normal(4)])
    monitor.close()

    assert module.SECOND_ROWS / 2 <= watched.counted(reference)["mean"] <= module.SECOND_ROWS


def test_a_reference_that_comes_while_it_serves_is_taken_up_and_told(watched: Watched) -> None:
    monitor = watched.begin(NUMBERS)
    answer(monitor, NUMBERS, [normal(9)])
    reference = watched.record(reference_for(NUMBERS, normal(300)))

    def is_counted() -> bool:
        answer(monitor, NUMBERS, [normal(1)])
        return watched.counted(reference)["mean"] > 0

    wait_until(is_counted, 10, "the reference is taken up")
    told = reference_of(watched.registry.references()["fake/1"])
    assert told is not None and told.digest == reference.digest
    monitor.close()


def test_counts_wait_while_redis_is_away(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = watched.record(reference_for(NUMBERS, normal(300)))
    really_add, refused = DriftCounts.add, []

    def add(counts: DriftCounts, *arguments: Any) -> None:
        if len(refused) < 2:
            refused.append(arguments)
            raise RedisUnavailable("away")
        really_add(counts, *arguments)

    monkeypatch.setattr(DriftCounts, "add", add)
    monitor = watched.begin(NUMBERS)
    sent = 0

    def is_back() -> bool:
        nonlocal sent
        answer(monitor, NUMBERS, [normal(1)])
        sent += 1
        return watched.counted(reference)["mean"] > 2

    wait_until(is_back, 10, "counts arrive")
    monitor.close()
    assert len(refused) == 2 and watched.counted(reference)["mean"] == sent


@pytest.mark.parametrize("content", ["", "[]", '{"reference": {"mean": 3}}', "null", "{"])
def test_a_damaged_record_counts_nothing_and_fails_nobody(watched: Watched, content: str) -> None:
    (watched.directory / "verify.json").write_text(content)
    monitor = watched.begin(NUMBERS)

    answer(monitor, NUMBERS, [normal(2)])
    monitor.close()

    assert not list(watched.client.scan_iter(f"{watched._settings.key_prefix}:*drift*"))


def test_signals_that_an_older_record_lacks_are_left_out(watched: Watched) -> None:
    reference = watched.record({"mean": histogram(RANDOM.normal(size=300))})
    monitor = watched.begin(NUMBERS)

    answer(monitor, NUMBERS, [normal(2)])
    monitor.close()

    assert watched.counted(reference) == {"mean": 2}
    assert os.listdir(watched.directory) == ["verify.json"]


def test_one_request_of_a_second_is_sampled_also_without_a_reference(watched: Watched) -> None:
    directory = watched.directory / "samples"
    monitor = watched.begin(NUMBERS, Samples(NUMBERS, directory, SampleWish(10**6)))
    rows = normal(1)

    answer(monitor, NUMBERS, [rows])
    monitor.close()

    (file,) = directory.iterdir()
    assert np.load(file)["input.x"].tolist() == rows.tolist()


def test_a_full_disk_ends_the_samples_and_not_the_counts(watched: Watched) -> None:
    reference = watched.record(reference_for(NUMBERS, normal(300)))
    (watched.directory / "file").touch()
    samples = Samples(NUMBERS, watched.directory / "file" / "no directory", SampleWish(10**6))
    monitor = watched.begin(NUMBERS, samples)

    answer(monitor, NUMBERS, [normal(3)])
    monitor.close()

    assert watched.counted(reference)["mean"] == 3
