"""How a model instance that cannot be started is tried again."""

from __future__ import annotations

import ctypes
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from fake_backend import fake_spec

from shared.settings import Settings
from worker.devices import Placement
from worker.meter import Meter, MeterBoard
from worker.supervisor import instance_slot as slot_module
from worker.supervisor.devices.device_ledger import DeviceLedger
from worker.supervisor.instance_slot import LONGEST_PAUSE_SECONDS, InstanceSlot, SlotHost


class NoProcesses:
    """A machine that has no room for another process."""

    def RawArray(self, kind: type[Meter], count: int) -> ctypes.Array[Meter]:
        return (kind * count)()

    def Pipe(self, *, duplex: bool) -> tuple[Any, Any]:
        assert not duplex
        end = SimpleNamespace(close=lambda: None)
        return end, end

    def Process(self, **_: object) -> Any:
        def start() -> None:
            raise OSError("Cannot allocate memory")

        return SimpleNamespace(start=start)


def make_slot() -> InstanceSlot:
    model = SimpleNamespace(
        spec=fake_spec(),
        file=Path("model.pt"),
        config=SimpleNamespace(backend="torchscript", warmup=()),
    )
    meters = MeterBoard(NoProcesses().RawArray)
    machine = SlotHost("host", Settings(), cast(Any, NoProcesses()), DeviceLedger(), meters)
    return InstanceSlot(cast(Any, model), Placement("cpu", 1), 0, machine)


def test_an_instance_that_cannot_start_is_tried_again_after_growing_pauses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(slot_module.time, "monotonic", lambda: 1000.0)
    slot = make_slot()
    pauses = []

    for _ in range(8):
        slot.start()
        pauses.append(slot.start_at - 1000.0)

    assert pauses == [2.0, 4.0, 8.0, 16.0, 32.0, *[LONGEST_PAUSE_SECONDS] * 3]
    assert slot.record().state == "failed"
    assert slot.record().reason == "cannot start a process: Cannot allocate memory"


@pytest.mark.parametrize(("lane", "untouched"), [(0, ""), (1, "host-0.0"), (2, "host-0.0+")])
def test_of_an_instance_that_died_it_is_known_which_batch_no_model_had_seen(
    lane: int, untouched: str
) -> None:
    slot = make_slot()
    ended = SimpleNamespace(exitcode=-9, join=lambda _: None, close=lambda: None, kill=lambda: None)
    slot.process = cast(Any, ended)
    slot.meter.untouched_lane = lane

    assert slot.reap(10.0, has_ended=True) == "host-0.0"

    assert slot.loss.untouched == untouched
