"""Figures of each second and minute: one process writes for all; bounded, and remembered."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from registered import register, spec
from waiting import wait_until

from shared.history import recorder as module
from shared.history.figures import (
    HistoryPoint,
    Moment,
    Rates,
    VersionCounts,
    percentile,
    point_between,
)
from shared.history.keys import HistoryKeys
from shared.history.recorder import MINUTE_POINTS, SECOND_POINTS, Recorder
from shared.model_spec import TensorSpec
from shared.registry.catalog import Catalog
from shared.registry.registry import Registry
from shared.request_queue.keys import QueueKeys
from shared.request_queue.model_statistics import LATENCY_BOUNDS
from shared.settings import Settings
from shared.wire.client import connect

NO_COUNTS = VersionCounts(0, 0, 0, {}, {}, {}, [0] * (len(LATENCY_BOUNDS) + 1), 0, 0.0, 0, 0)
NUMBERS = TensorSpec(name="x", datatype="FP32", dims=(4,))


def counts(**changes: Any) -> VersionCounts:
    return NO_COUNTS._replace(**changes)


def test_a_point_has_the_rates_between_two_moments() -> None:
    latencies = [0] * (len(LATENCY_BOUNDS) + 1)
    latencies[1] = 20
    before = Moment(10.0, {"m/1": counts(requests=5, rows=5)})
    busy = counts(requests=25, rows=65, ended={"failed": 4, "retried": 9}, latencies=latencies)
    after = Moment(12.0, {"m/1": busy._replace(depth=3), "quiet/1": NO_COUNTS})

    point = point_between(before, after)

    assert point.versions.keys() == {"m/1"}
    rates = point.versions["m/1"]
    assert rates[:3] == (10.0, 30.0, 2.0)
    assert rates.p50 == pytest.approx((LATENCY_BOUNDS[0] + LATENCY_BOUNDS[1]) / 2)
    assert rates.depth == 3


def test_a_point_has_the_busiest_versions_and_no_more() -> None:
    before = Moment(0.0, {f"m{n}/1": NO_COUNTS for n in range(60)})
    after = Moment(1.0, {f"m{n}/1": counts(requests=n) for n in range(60)})

    found = point_between(before, after).versions

    assert len(found) == 50
    assert "m59/1" in found
    assert "m9/1" not in found


def test_counts_that_fell_begin_anew() -> None:
    before, after = Moment(0.0, {"m/1": counts(requests=9)}), Moment(1.0, {"m/1": counts(depth=1)})

    assert point_between(before, after).versions["m/1"].requests == 0


@pytest.mark.parametrize(
    ("latencies", "share", "seconds"),
    [([], 0.5, 0.0), ([0, 0], 0.5, 0.0), ([10], 0.5, 0.00025), ([0, 10], 0.99, 0.000995)],
)
def test_a_percentile_lies_within_its_step(
    latencies: list[int], share: float, seconds: float
) -> None:
    assert percentile(latencies, share) == pytest.approx(seconds)


def test_what_took_longest_of_all_is_the_last_bound() -> None:
    assert percentile([0] * len(LATENCY_BOUNDS) + [1], 0.5) == LATENCY_BOUNDS[-1]


def test_moments_and_points_are_read_as_they_were_written() -> None:
    moment = Moment(1.5, {"m/1": counts(sizes={1: 2}, left={"full": 1}, ended={"dead": 1})})
    point = HistoryPoint(2.0, {"m/1": Rates(1.0, 2.0, 0.0, 0.1, 0.2, 0.3, 4, 0.5)})

    assert Moment.decode(moment.encode()) == moment
    assert HistoryPoint.decode(point.encode()) == point


class Clocked:
    """Two recorders of one Redis, whose turns come when the test says so."""

    def __init__(self, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
        self.client = connect(settings.redis_url)
        self.keys = HistoryKeys(settings.key_prefix)
        self.queue = QueueKeys(settings.key_prefix, "m/1")
        self.at = 1000.0
        registry = register(settings, spec("m", NUMBERS))
        self.recorders = [
            Recorder(self.client, settings.key_prefix, Catalog(registry), registry) for _ in "ab"
        ]
        monkeypatch.setattr(Recorder, "_turn", lambda _: self.at)

    def fail_requests(self, count: int) -> None:
        self.client.hincrby(self.queue.counts, "expired", count)

    def step(self, seconds: float, recorder: int = 0) -> None:
        self.at += seconds
        self.recorders[recorder].record()


@pytest.fixture
def clocked(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Clocked:
    return Clocked(settings, monkeypatch)


def test_whichever_process_writes_all_read_the_same(clocked: Clocked) -> None:
    clocked.step(0.0)
    clocked.fail_requests(6)
    clocked.step(1.0, recorder=1)
    clocked.fail_requests(4)
    clocked.step(2.0, recorder=0)

    for recorder in clocked.recorders:
        points = recorder.seconds()
        assert [(point.at, point.versions["m/1"].errors) for point in points] == [
            (1001.0, 6.0),
            (1003.0, 2.0),
        ]
        assert [point.at for point in recorder.seconds(since=1001.0)] == [1003.0]


def test_seconds_in_which_nothing_happens_are_not_written(clocked: Clocked) -> None:
    for _ in range(3):
        clocked.step(1.0)

    assert not clocked.client.exists(clocked.keys.seconds)


def test_a_pause_is_no_second(clocked: Clocked) -> None:
    clocked.step(0.0)
    clocked.fail_requests(6)
    clocked.step(30.0)

    assert not clocked.recorders[0].seconds()


def test_each_minute_is_written_with_its_mean(clocked: Clocked) -> None:
    clocked.step(0.0)
    clocked.fail_requests(120)
    clocked.step(60.0)

    (point,) = clocked.recorders[1].minutes()
    assert point.versions["m/1"].errors == 2.0


def test_the_history_is_bounded_and_expires(clocked: Clocked, monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "SECOND_POINTS", 3)
    for _ in range(6):
        clocked.fail_requests(1)
        clocked.step(1.0)

    assert clocked.client.llen(clocked.keys.seconds) == 3
    assert 0 < clocked.client.ttl(clocked.keys.seconds) <= 900
    assert 0 < clocked.client.ttl(clocked.keys.last) <= 86_400
    assert (SECOND_POINTS, MINUTE_POINTS) == (900, 1440)


def test_one_of_all_recorders_has_the_turn(settings: Settings) -> None:
    client = connect(settings.redis_url)
    registry = Registry(client, settings.key_prefix)
    recorders = [
        Recorder(client, settings.key_prefix, Catalog(registry), registry) for _ in range(3)
    ]

    turns = [each._turn() for each in recorders]

    assert [turn is not None for turn in turns] == [True, False, False]
    assert 0 < client.pttl(HistoryKeys(settings.key_prefix).writer) <= 900


def test_requests_begin_to_be_recorded_and_an_idle_process_ends(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TICK_SECONDS", 0.05)
    registry = register(settings, spec("m", NUMBERS))
    catalog = Catalog(registry)
    recorder = Recorder(connect(settings.redis_url), settings.key_prefix, catalog, registry)
    assert recorder.last() is None

    catalog.serving("m")
    wait_until(lambda: recorder.last() is not None, 20, "the first moment is written")

    monkeypatch.setattr("shared.registry.catalog.UNASKED_SECONDS", 0.0)
    wait_until(lambda: not recorder._runs, 20, "the recorder ends")


def test_a_redis_that_is_away_ends_no_recorder(settings: Settings) -> None:
    away = replace(settings, redis_url="redis://127.0.0.1:1")
    client = connect(away.redis_url)
    registry = Registry(client, away.key_prefix)
    recorder = Recorder(client, away.key_prefix, Catalog(registry), registry)
    recorder._watched_until = float("inf")

    assert recorder.tick()
