"""Counts in Redis: added to by several instances, read as the latest or by the hour."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from shared.drift import counts as module
from shared.drift.counts import BLOCK_COUNT, HOUR_SECONDS, LATEST_ROWS, Counted, DriftCounts
from shared.drift.reference import Reference, histogram
from shared.settings import Settings
from shared.wire.client import connect

VALUES = np.random.default_rng(2).normal(size=1000)
REFERENCE = Reference.of({"mean": histogram(VALUES)})
OTHER = Reference.of({"mean": histogram(VALUES + 9)})


class Clock:
    now = 1e9

    def time(self) -> float:
        return self.now


@pytest.fixture
def counts(settings: Settings) -> Iterator[DriftCounts]:
    with connect(settings.redis_url) as client:
        yield DriftCounts(client, settings.key_prefix)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def add(counts: DriftCounts, values: np.ndarray, reference: Reference = REFERENCE) -> None:
    counted = {"mean": reference.signals["mean"].counted(values)}
    counts.add("m/1", reference, len(values), counted)


def latest(counts: DriftCounts) -> np.ndarray:
    (found,) = counts.latest([("m/1", REFERENCE)])
    return np.asarray(found["mean"])


def rows(found: Counted) -> int:
    return int(found["mean"].sum())


def test_what_two_instances_count_is_added_up(counts: DriftCounts, settings: Settings) -> None:
    with connect(settings.redis_url) as client:
        other = DriftCounts(client, settings.key_prefix)
        for start in range(0, 400, 100):
            add(counts, VALUES[start : start + 50])
            add(other, VALUES[start + 50 : start + 100])

    whole = REFERENCE.signals["mean"].counted(VALUES[:400])
    assert latest(counts).tolist() == whole.tolist()
    assert counts.hours("m/1", REFERENCE, 2)["mean"].tolist() == whole.tolist()


def test_the_latest_are_few_more_than_were_asked_for_and_none_before(counts: DriftCounts) -> None:
    for _ in range(300):
        add(counts, np.full(7, -99.0))
    for _ in range(250):
        add(counts, np.full(2, 99.0))

    found = latest(counts)
    assert LATEST_ROWS <= found.sum() < LATEST_ROWS + 100
    assert found[-1] >= LATEST_ROWS and found[0] < 100


def test_hours_are_told_apart_and_older_ones_left_out(counts: DriftCounts, clock: Clock) -> None:
    for _ in range(5):
        add(counts, VALUES[:10])
        clock.now += HOUR_SECONDS

    clock.now -= HOUR_SECONDS
    assert [rows(counts.hours("m/1", REFERENCE, hours)) for hours in (1, 3, 168)] == [10, 30, 50]


def test_counts_by_another_reference_are_no_part_of_them(counts: DriftCounts) -> None:
    add(counts, VALUES[:10])
    add(counts, VALUES[:20], OTHER)

    assert latest(counts).sum() == 10
    assert rows(counts.hours("m/1", OTHER, 1)) == 20


def test_every_key_expires_and_is_of_the_versions_own_slot(
    counts: DriftCounts, settings: Settings
) -> None:
    for _ in range(3 * BLOCK_COUNT):
        add(counts, VALUES)

    with connect(settings.redis_url) as client:
        keys = list(client.scan_iter(f"{settings.key_prefix}:*"))
        assert len(keys) in (2, 3) and all(b":{m/1}:drift:" in key for key in keys)
        assert all(0 < client.ttl(key) <= 8 * 86_400 for key in keys)
        (listed,) = (key for key in keys if key.endswith(b":latest"))
        assert client.llen(listed) <= BLOCK_COUNT


def test_nothing_counted_is_nothing(counts: DriftCounts) -> None:
    assert counts.latest([]) == []
    assert latest(counts).sum() == 0
