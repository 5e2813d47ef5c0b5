"""What an instance did reaches the registry: by shared memory and its supervisor's heartbeats."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from ferry_processes import running_worker
from registered import register, spec
from scripted_models import add_model
from waiting import wait_until
from worker_processes import Served, seen

from shared.registry.registry import Registry
from shared.registry.snapshot import InstanceRecord, Snapshot
from shared.settings import Settings
from worker.meter import Meter, Rate


def batch(meter: Meter, requests: int, rows: int) -> None:
    meter.begin_batch()
    meter.end_batch(requests, rows)


def test_a_meter_adds_up_batches_and_keeps_the_last() -> None:
    meter = Meter()

    batch(meter, 3, 24)
    batch(meter, 2, 5)

    assert (meter.answered_count, meter.row_count, meter.batch_count) == (5, 29, 2)
    assert meter.last_batch_rows == 5
    assert 0.0 < meter.last_batch_seconds < 1.0
    assert meter.busy_since == 0.0


def test_what_a_process_writes_into_a_meter_its_parent_reads() -> None:
    context = get_context("forkserver")
    meter: Any = context.RawValue(Meter)
    process = context.Process(target=batch, args=(meter, 3, 24))

    process.start()
    process.join()

    assert (process.exitcode, meter.answered_count, meter.row_count) == (0, 3, 24)


def test_a_reset_meter_keeps_the_log_level_and_what_the_model_can_do() -> None:
    meter = Meter()
    meter.log_level, meter.row_limit = 10, 8
    batch(meter, 3, 24)
    capacity = meter.capacity_per_second

    meter.reset()

    assert (meter.log_level, meter.capacity_per_second) == (10, capacity)
    assert meter.row_limit == meter.answered_count == meter.row_count == meter.batch_count == 0


def timed(meter: Meter, seconds: float, requests: int, rows: int) -> None:
    meter.busy_since = time.monotonic() - seconds
    meter.end_batch(requests, rows)


def test_what_a_model_can_do_is_what_it_does_with_full_batches() -> None:
    meter = Meter()
    assert meter.capacity_per_second == 0.0

    timed(meter, 0.1, 1, 1)
    assert meter.capacity_per_second == pytest.approx(10, rel=0.01)
    timed(meter, 0.2, 8, 8)
    assert meter.capacity_per_second == pytest.approx(40, rel=0.01)
    for _ in range(100):  # little is asked of it: that says nothing of what it can do
        timed(meter, 0.1, 1, 1)
    assert meter.capacity_per_second == pytest.approx(40, rel=0.01)
    for _ in range(20):
        timed(meter, 0.8, 8, 8)
    assert meter.capacity_per_second == pytest.approx(10, rel=0.01)


def test_a_rate_is_a_mean_in_which_each_heartbeat_weighs_half_of_the_next() -> None:
    meter, rate = Meter(), Rate(now=100.0)
    seen = []

    for now, answered in ((102.0, 0), (104.0, 200), (106.0, 400), (108.0, 0)):
        meter.answered_count += answered
        rate.update(meter, now)
        seen.append(rate.per_second)

    assert seen == [0.0, 100.0, 150.0, 75.0]


def test_a_rate_comes_to_rest_at_nothing() -> None:
    meter, rate = Meter(), Rate(now=0.0)
    meter.answered_count = 1000
    for beat in range(1, 20):
        rate.update(meter, float(beat))

    assert rate.per_second == 0.0


def test_a_batch_longer_than_a_heartbeat_is_spread_over_its_time() -> None:
    meter, rate = Meter(), Rate(now=0.0)
    meter.busy_since = 0.1
    for now in (2.0, 4.0, 6.0):
        rate.update(meter, now)
    meter.busy_since, meter.answered_count = 7.9, 32

    rate.update(meter, 8.0)

    assert rate.per_second == 4.0


def record(name: str, rate: float, **more: Any) -> InstanceRecord:
    fields = {"id": name, "supervisor": "nobody", "model": "m", "version": "1", "state": "ready"}
    return InstanceRecord.model_validate(fields | {"requests_per_second": rate} | more)


def test_a_models_drain_rate_is_that_of_its_ready_instances_which_live(settings: Settings) -> None:
    registry = register(settings, spec("m"), ready=False)
    registry.put_instance(record("one", 30.0))
    registry.put_instance(record("two", 2.0, capacity_per_second=12.5))
    registry.put_instance(record("loading", 1.0, state="starting"))
    registry.put_instance(record("orphan", 2.0, supervisor="dead"))
    registry.put_instance(record("other", 4.0, version="2"))

    snapshot = registry.snapshot()

    assert snapshot.drain_rate("m/1") == 42.5
    assert snapshot.drain_rate("m/2") == 4.0
    assert snapshot.drain_rate("unknown/1") == Snapshot().drain_rate("m/1") == 0.0


@pytest.fixture
def identity(settings: Settings, tmp_path: Path) -> Iterator[Served]:
    """A real worker with a model of its own."""
    add_model(tmp_path, torch.nn.Identity(), max_batch_size=8)
    settings = replace(settings, models=str(tmp_path), heartbeat_seconds=0.3)
    with running_worker(settings), seen(settings, "identity") as served:
        yield served


def test_a_heartbeat_tells_what_an_instance_answered(identity: Served) -> None:
    registry: Registry = identity.registry
    assert identity.ready()[0].answered_count == 0
    assert registry.snapshot().drain_rate("identity/1") == 0.0

    for rows in (1, 1, 5):
        identity.push(1.0, (rows, 2)).wait()

    wait_until(lambda: identity.ready()[0].answered_count == 3, 5, "the answers are counted")
    (after,) = identity.ready()
    assert after.last_batch_rows == 5
    assert 0.0 < after.last_batch_seconds < 1.0
    assert after.requests_per_second > 0.0
    wait_until(lambda: identity.ready()[0].requests_per_second == 0.0, 20, "it comes to rest")
    assert registry.snapshot().drain_rate("identity/1") == after.capacity_per_second > 0.0
    assert identity.ready()[0].answered_count == 3
