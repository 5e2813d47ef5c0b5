"""Nothing is started on a device that fails more often than others, or where a process is stuck."""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing.process import BaseProcess
from random import Random
from types import SimpleNamespace
from typing import cast

import pytest
from still_clock import StillClock

from worker.supervisor.devices import device_ledger
from worker.supervisor.devices.device_ledger import QUARANTINE_SECONDS, WINDOW_SECONDS, DeviceLedger

EIGHT = [f"cuda:{index}" for index in range(8)]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> StillClock:
    clock = StillClock()
    monkeypatch.setattr(device_ledger, "time", clock)
    return clock


def serving(*devices: str) -> DeviceLedger:
    ledger = DeviceLedger()
    for device in devices:
        ledger.served("m/1", device)
    return ledger


def closed(ledger: DeviceLedger) -> list[str]:
    return [device for device in EIGHT if ledger.why_closed(device)]


def test_one_bad_device_of_eight_is_quarantined_and_named(clock: StillClock) -> None:
    ledger = serving(*EIGHT)

    for _ in range(2):
        ledger.failed("m/1", "cuda:3")
    assert closed(ledger) == []
    ledger.failed("m/1", "cuda:3")

    assert closed(ledger) == ["cuda:3"]
    assert "cuda:3 is quarantined" in ledger.why_closed("cuda:3")
    assert ledger.fault_count("cuda:3") == 3


def test_a_device_on_which_a_model_never_started_is_judged_by_those_where_it_did(
    clock: StillClock,
) -> None:
    ledger = serving(*EIGHT[1:])

    for _ in range(3):
        ledger.failed("m/1", "cuda:0")

    assert closed(ledger) == ["cuda:0"]


@pytest.mark.parametrize("count", [2, 4, 8])
@pytest.mark.parametrize("seed", range(20))
def test_requests_that_kill_devices_close_none(clock: StillClock, count: int, seed: int) -> None:
    ledger, random = serving(*EIGHT[:count]), Random(seed)

    for number in range(50):  # each kills two devices as they come, or one twice
        once, again = random.choices(EIGHT[:count], k=2)
        ledger.failed("m/1", once, {f"r{number}", f"beside it {number}"})
        clock.now += random.uniform(0.0, 4.0)
        ledger.failed("m/1", again, {f"r{number}"})
        clock.now += random.uniform(0.0, 20.0)

    assert closed(ledger) == []


def test_a_device_that_fails_requests_which_others_answer_is_quarantined(clock: StillClock) -> None:
    ledger = serving("cuda:0", "cuda:1")

    for number in range(6):
        ledger.failed("m/1", "cuda:1", {f"r{number}", f"beside it {number}"})
        clock.now += 10.0

    assert closed(ledger) == ["cuda:1"]


def test_a_quarantine_that_lasts_is_not_begun_again(clock: StillClock) -> None:
    ledger = serving(*EIGHT)

    for _ in range(10):  # eight instances on one device die together
        ledger.failed("m/1", "cuda:3")
    clock.now += QUARANTINE_SECONDS + 1

    assert closed(ledger) == []


def test_a_model_that_no_other_device_serves_stays_on_a_quarantined_one(clock: StillClock) -> None:
    ledger = serving(*EIGHT)
    ledger.served("alone/1", "cuda:3")
    for _ in range(3):
        ledger.failed("m/1", "cuda:3")

    assert ledger.is_quarantined_for("m/1", "cuda:3")
    assert "quarantined" in ledger.why_closed_to("m/1", "cuda:3")
    assert not ledger.is_quarantined_for("alone/1", "cuda:3")
    assert ledger.why_closed_to("alone/1", "cuda:3") == ""


def test_the_only_device_of_a_model_is_never_closed(clock: StillClock) -> None:
    ledger = serving("cuda:0")
    ledger.served("other/1", "cuda:1")

    for _ in range(50):
        ledger.failed("m/1", "cuda:0")

    assert closed(ledger) == []


def test_a_model_that_fails_everywhere_closes_no_device(clock: StillClock) -> None:
    ledger = DeviceLedger()

    for device in EIGHT * 10:
        ledger.failed("broken/1", device)

    assert closed(ledger) == []


def test_faults_are_forgotten_after_a_while(clock: StillClock) -> None:
    ledger = serving(*EIGHT)

    for _ in range(20):
        ledger.failed("m/1", "cuda:3")
        clock.now += WINDOW_SECONDS / 2

    assert closed(ledger) == []


def test_a_quarantine_ends_and_the_next_is_longer(clock: StillClock) -> None:
    ledger = serving(*EIGHT)

    def fail() -> None:
        for _ in range(3):
            ledger.failed("m/1", "cuda:3")

    fail()
    clock.now += QUARANTINE_SECONDS + 1
    assert closed(ledger) == []
    fail()
    clock.now += QUARANTINE_SECONDS + 1
    assert closed(ledger) == ["cuda:3"]
    clock.now += QUARANTINE_SECONDS
    assert closed(ledger) == []


def process(is_alive: Callable[[], bool]) -> BaseProcess:
    return cast(BaseProcess, SimpleNamespace(pid=7, is_alive=is_alive))


def test_a_device_is_fenced_as_long_as_a_process_on_it_does_not_die() -> None:
    ledger, alive = DeviceLedger(), [True]

    ledger.fence("cuda:1", "host-1.1", process(lambda: alive[0]))
    ledger.fence("cpu", "host-2.1", process(lambda: True))

    assert "process 7 of host-1.1 does not die" in ledger.why_closed("cuda:1")
    assert ledger.has_stuck
    assert ledger.why_closed("cuda:0") == ledger.why_closed("cpu") == ""
    alive[0] = False
    assert ledger.why_closed("cuda:1") == ""
