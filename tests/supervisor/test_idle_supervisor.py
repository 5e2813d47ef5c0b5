"""An idle supervisor looks after nobody, and asks Redis once a heartbeat: counted, not timed."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Iterator
from pathlib import Path
from threading import get_ident
from types import SimpleNamespace
from typing import Any, cast

import pytest
from fake_backend import fake_spec
from redis.connection import AbstractConnection

from shared.settings import Settings
from shared.wire.wire import Wire
from worker.devices import Placement
from worker.meter import Meter, MeterBoard
from worker.supervisor import registration
from worker.supervisor.deployment import Deployment
from worker.supervisor.devices.device_ledger import DeviceLedger
from worker.supervisor.instance_slot import InstanceSlot, SlotHost
from worker.supervisor.registration import HEARTBEATS_PER_CHECK
from worker.supervisor.supervisor import Supervisor
from worker.supervisor.watch import Watch

MODELS, BEATS = 20, 2 * HEARTBEATS_PER_CHECK


class Sleeper:
    """A process that does nothing until it ends, of which a pipe tells."""

    pid = 7

    def __init__(self, **_: object) -> None:
        self.sentinel, self._end = os.pipe()
        self.exitcode: int | None = None

    def start(self) -> None:
        """Do nothing."""

    def end(self) -> None:
        self.exitcode = -9
        os.write(self._end, b".")

    def join(self, timeout: float) -> None:
        """Return at once: it has ended."""

    def close(self) -> None:
        os.close(self.sentinel)
        os.close(self._end)


class Sleepers:
    """Makes them."""

    Process = Sleeper

    def RawArray(self, kind: type[Meter], count: int) -> ctypes.Array[Meter]:
        return (kind * count)()

    def Pipe(self, *, duplex: bool) -> tuple[Any, Any]:
        reader, writer = os.pipe()
        theirs = SimpleNamespace(close=lambda: os.close(writer))
        return os.fdopen(reader, "rb", 0), theirs


def deployments(
    board: MeterBoard, settings: Settings, supervisor: str = "host"
) -> dict[str, Deployment]:
    host = SlotHost(supervisor, settings, cast(Any, Sleepers()), DeviceLedger(), board)
    found = {}
    for index in range(MODELS):
        model = SimpleNamespace(
            spec=fake_spec().model_copy(update={"name": f"m{index}"}),
            file=Path("model.pt"), asset=None,
            config=SimpleNamespace(backend="torchscript", warmup=()), report=lambda: None,
            reference=lambda: None,
        )  # fmt: skip
        slot = InstanceSlot(cast(Any, model), Placement("cpu", 1), index, host)
        slot.start()
        slot._state = "ready"
        assert slot.reports is not None
        slot.reports.close()
        slot.reports = None
        found[model.spec.key] = Deployment(cast(Any, model), [slot])
    return found


class Idle:
    """A supervisor whose instances sleep; it counts what it does, and forgets it at each run."""

    def __init__(self, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
        self.supervisor = Supervisor(settings)
        board = self.supervisor._placer.meters
        self.deployments = deployments(board, settings, self.supervisor.id)
        self.supervisor._rollout.deployments |= self.deployments
        self.supervisor._rollout._wanted_keys |= {
            each.model.spec.name: {"1": key} for key, each in self.deployments.items()
        }
        self.wakes = self.asked = 0
        self.served: list[str] = []
        self._signal, self._never = os.pipe()
        for sends, name in ((AbstractConnection, "send_packed_command"), (Wire, "send")):
            monkeypatch.setattr(sends, name, self._counted(getattr(sends, name)))
        monkeypatch.setattr(self.supervisor, "_serve", lambda each: self.served.append(each.key))

    def _counted(self, send: Any) -> Any:
        thread = get_ident()

        def counted(*arguments: Any, **options: Any) -> Any:
            self.asked += get_ident() == thread  # other tests' threads may go on
            return send(*arguments, **options)

        return counted

    def run(self, beats: int) -> None:
        """Tick until so many heartbeats were sent, and the last one was acted upon."""
        self.wakes = self.asked = 0
        self.served.clear()
        for _ in range(beats):
            due_at = self.supervisor._registration.next_beat
            while self.supervisor._registration.next_beat == due_at:
                self.supervisor._wait(self._signal)
                self.supervisor._tick()
                self.wakes += 1

    def close(self) -> None:
        for deployment in self.deployments.values():
            for slot in deployment.slots:
                if slot.process is not None:
                    slot.process.close()
        self.supervisor._bell.close()
        os.close(self._signal)
        os.close(self._never)


@pytest.fixture
def idle(redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Idle]:
    settings = Settings(
        redis_url=redis_url, key_prefix=tmp_path.name, models=str(tmp_path), heartbeat_seconds=0.1
    )
    monkeypatch.setattr(registration, "BEAT_TERM", 600)  # on a busy machine we sleep longer
    found = Idle(settings, monkeypatch)
    found.run(2 * HEARTBEATS_PER_CHECK)  # to read the repository, and rest
    yield found
    found.close()


def test_an_idle_supervisor_asks_once_a_heartbeat_and_looks_after_nobody(idle: Idle) -> None:
    idle.run(BEATS)

    checks = BEATS // HEARTBEATS_PER_CHECK
    assert BEATS <= idle.asked <= BEATS + 5 * checks
    assert idle.wakes <= BEATS + 5
    assert idle.served == []


def test_of_many_models_that_one_is_looked_after_whose_process_ended(idle: Idle) -> None:
    (slot,) = idle.deployments["m3/1"].slots
    ended = slot.instance_id

    cast(Sleeper, slot.process).end()
    idle.supervisor._wait(idle._signal)
    idle.served.clear()
    idle.supervisor._reap(idle.supervisor._watch.awake())

    assert idle.supervisor._watch.awake() == [idle.deployments["m3/1"]]
    assert slot.process is None
    assert list(idle.supervisor._recovery._noted) == [ended]


def test_what_an_instance_did_is_found_at_the_next_heartbeat(idle: Idle) -> None:
    (slot,) = idle.deployments["m5/1"].slots
    slot.meter.answered_count += 7

    idle.run(1)

    assert slot.recorded is not None
    assert slot.recorded.answered_count == 7
    assert set(idle.served) == idle.deployments.keys()


def test_what_hangs_is_due_when_its_time_is_up() -> None:
    board, settings = MeterBoard(Sleepers().RawArray), Settings(max_batch_seconds=0.01)
    watch, found = Watch(), deployments(board, settings)
    watch.follow(found.values())
    assert watch.due_at == float("inf")

    found["m1/1"].slots[0].meter.begin_batch()
    assert board.has_moved()
    watch.follow(found.values())
    reader, writer = os.pipe()
    watch.wait({reader}, max(0.0, watch.due_at - time.monotonic()), reads=True)

    assert watch.awake() == [found["m1/1"]]
    assert not board.has_moved()
    for descriptor in (reader, writer):
        os.close(descriptor)
