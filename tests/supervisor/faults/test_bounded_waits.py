"""No process holds its supervisor: not one that gets ready never, nor one that survives SIGKILL."""

from __future__ import annotations

import ctypes
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from fake_backend import fake_spec
from still_clock import StillClock

from shared.settings import Settings
from worker.devices import Placement
from worker.job import DEVICE_IS_LOST
from worker.meter import Meter, MeterBoard
from worker.supervisor import instance_slot as slot_module
from worker.supervisor.deployment import Deployment
from worker.supervisor.devices.device_ledger import QUARANTINE_SECONDS, DeviceLedger
from worker.supervisor.instance_slot import LONGEST_DEATH_SECONDS, InstanceSlot, SlotHost
from worker.supervisor.supervisor import Supervisor
from worker.supervisor.watch import Watch

MAX_BATCH_SECONDS, MAX_LOAD_SECONDS = 10.0, 100.0


class Immortal:
    """A process that neither SIGTERM nor SIGKILL ends, and whose end nobody lives to see."""

    pid = 7
    exitcode: int | None = None

    def __init__(self, **_: object) -> None:
        self.kills = 0

    def start(self) -> None:
        """Run for ever."""

    def is_alive(self) -> bool:
        return self.exitcode is None

    def join(self, timeout: float | None = None) -> None:
        assert timeout is not None or not self.is_alive(), "this never returns"

    def kill(self) -> None:
        self.kills += 1

    terminate = start

    def close(self) -> None:
        assert not self.is_alive()


class Immortals:
    """Makes them."""

    Process = Immortal

    def RawArray(self, kind: type[Meter], count: int) -> ctypes.Array[Meter]:
        return (kind * count)()

    def Pipe(self, *, duplex: bool) -> tuple[Any, Any]:
        end = SimpleNamespace(close=lambda: None, poll=lambda: False)
        return end, end


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> StillClock:
    clock = StillClock()
    monkeypatch.setattr(slot_module, "time", clock)
    monkeypatch.setattr(time, "monotonic", clock.monotonic)
    return clock


@pytest.fixture
def slot(clock: StillClock) -> InstanceSlot:
    model = SimpleNamespace(
        spec=fake_spec(),
        file=Path("model.pt"),
        config=SimpleNamespace(backend="torchscript", warmup=()),
    )
    settings = Settings(max_load_seconds=MAX_LOAD_SECONDS)
    meters = MeterBoard(Immortals().RawArray)
    machine = SlotHost("host", settings, cast(Any, Immortals()), DeviceLedger(), meters)
    placement = Placement("cuda:3", 1, uuid="GPU-7")
    slot = InstanceSlot(cast(Any, model), placement, 0, machine)
    slot.start()
    return slot


def test_one_that_is_not_ready_in_time_is_killed_and_tried_again(
    slot: InstanceSlot, clock: StillClock
) -> None:
    process = cast(Immortal, slot.process)
    clock.now += MAX_LOAD_SECONDS
    assert slot.reap(MAX_BATCH_SECONDS, has_ended=False) is None
    assert process.kills == 0

    clock.now += 1
    for _ in range(3):
        slot.reap(MAX_BATCH_SECONDS, has_ended=False)
    assert process.kills == 1
    process.exitcode = -9
    assert slot.reap(MAX_BATCH_SECONDS, has_ended=True) == "host-0.1"

    assert slot.state == "failed"
    assert slot.reason == "failed to load 'fake', model.pt: it took over 100 s, killed"
    assert slot.start_at == clock.now + 2.0


def test_one_that_survives_its_kill_is_abandoned_and_its_device_fenced(
    slot: InstanceSlot, clock: StillClock
) -> None:
    process = cast(Immortal, slot.process)
    clock.now += MAX_LOAD_SECONDS + 1
    slot.reap(MAX_BATCH_SECONDS, has_ended=False)
    clock.now += LONGEST_DEATH_SECONDS
    assert slot.reap(MAX_BATCH_SECONDS, has_ended=False) is None

    clock.now += 1
    assert slot.reap(MAX_BATCH_SECONDS, has_ended=False) == "host-0.1"  # its work goes back
    slot.start()

    assert (slot.process, slot.state, slot.had_chance) == (None, "failed", True)
    assert slot.reason == "cuda:3 (GPU-7) is fenced: process 7 of host-0.1 does not die"
    assert slot.record().device_closed == slot.reason
    process.exitcode = -9
    slot.start()
    assert slot.process is not None
    assert slot.record().device_closed == ""


def test_a_version_leaves_though_one_of_its_processes_does_not_die(
    slot: InstanceSlot, clock: StillClock
) -> None:
    deployment = Deployment(cast(Any, slot.model), [slot])
    deployment.leave(MAX_BATCH_SECONDS)
    assert not deployment.stop()

    clock.now += MAX_BATCH_SECONDS
    assert deployment.stop()
    clock.now += LONGEST_DEATH_SECONDS + 1
    assert deployment.stop()

    assert deployment.is_empty


def test_a_device_that_dies_in_a_warm_up_that_others_survive_makes_no_model_cold(
    slot: InstanceSlot, clock: StillClock
) -> None:
    slot._ledger.served(slot.model.spec.key, "cuda:1 (GPU-5)")

    for _ in range(3):
        slot.meter.making_up_since = clock.now
        cast(Immortal, slot.process).exitcode = DEVICE_IS_LOST
        slot.reap(MAX_BATCH_SECONDS, has_ended=True)
        assert (slot.state, slot._cold) == ("failed", "")
        slot.start()

    assert slot.reason.startswith("cuda:3 (GPU-7) is quarantined for 600 s: it failed 3 times")
    assert (slot.process, slot.record().device_faults) == (None, 3)


def test_one_that_is_to_leave_and_hangs_is_killed(slot: InstanceSlot, clock: StillClock) -> None:
    process = cast(Immortal, slot.process)
    slot._state = "ready"
    slot.replace("all of its last batches failed")

    clock.now += slot._settings.max_batch_seconds
    slot.reap(MAX_BATCH_SECONDS, has_ended=False)
    assert process.kills == 0
    clock.now += 1
    slot.reap(MAX_BATCH_SECONDS, has_ended=False)

    assert process.kills == 1


def test_one_that_said_that_it_failed_and_hangs_is_killed(
    slot: InstanceSlot, clock: StillClock
) -> None:
    said = [("failed", "no model")]
    slot.reports = cast(Any, SimpleNamespace(poll=lambda: bool(said), recv=said.pop))
    assert slot.read_reports()

    clock.now += slot._settings.max_batch_seconds + 1
    slot.reap(MAX_BATCH_SECONDS, has_ended=False)

    assert cast(Immortal, slot.process).kills == 1


def test_the_record_of_a_slot_whose_device_is_closed_stays(
    slot: InstanceSlot, clock: StillClock
) -> None:
    slot._ledger.served(slot.model.spec.key, "cuda:1 (GPU-5)")
    for _ in range(3):
        slot._ledger.failed(slot.model.spec.key, "cuda:3 (GPU-7)")
    cast(Immortal, slot.process).exitcode = DEVICE_IS_LOST
    assert slot.reap(MAX_BATCH_SECONDS, has_ended=True) == slot.instance_id
    noted: list[str] = []
    supervisor = cast(Any, Supervisor.__new__(Supervisor))
    supervisor._watch = Watch()
    supervisor._recovery = SimpleNamespace(note=lambda instance, *_: noted.append(instance))
    supervisor._rollout = SimpleNamespace(look_now=lambda: None)
    supervisor._registration = SimpleNamespace(record=lambda _: None)

    def look_after() -> None:
        clock.now = max(clock.now, slot.start_at)
        supervisor._look_after(slot)

    for _ in range(3):
        look_after()
    assert (noted, slot.state) == ([], "failed")
    clock.now += QUARANTINE_SECONDS
    look_after()
    assert (noted, slot.state) == (["host-0.1"], "starting")
