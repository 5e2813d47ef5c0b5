"""Two batches in an instance's hands: when the second one is claimed, and when it goes back."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Event, Semaphore, Thread
from typing import Any

import numpy as np
import pytest
from fake_backend import FakeBackend, doubled, fake_spec
from waiting import wait_until

from shared.datatypes import Array
from shared.errors import ModelFailed
from shared.messages import InferRequest, Tensor
from shared.request_queue.api_end import PendingRequest, RequestQueue
from shared.request_queue.claimed import Claimed
from shared.request_queue.keys import QueueKeys
from shared.request_queue.limits import Limits
from shared.request_queue.worker_end import WorkQueue
from shared.settings import Settings
from shared.wire.client import connect
from shared.wire.scripts import script_text
from shared.wire.wire import open_wire
from worker.devices import Placement
from worker.instance.health.self_check import InstanceLost, SelfCheck
from worker.instance.passes import lanes, serving
from worker.instance.passes.lanes import Lane, SharedDevice
from worker.instance.passes.serving import WarmBackend, WarmInstance, run_lanes
from worker.job import InstanceJob
from worker.meter import Meter
from worker.repository.config.parameters import PIPELINE_DEPTH

POISON = -1.0
SPEC = fake_spec(max_batch_size=2).model_copy(update={"parameters": {PIPELINE_DEPTH: "2"}})


class TwoLanes:
    """An instance of two lanes on a thread of the test, whose passes wait until it lets them."""

    def __init__(self, settings: Settings) -> None:
        self.redis = connect(settings.redis_url)
        self.keys = QueueKeys.of(SPEC, settings.key_prefix)
        self.queue = RequestQueue(self.redis, self.keys, Limits())
        self.backend = FakeBackend(self._forward, poison=POISON)
        self.fault = ""
        self.health = SelfCheck(probe=lambda: self.fault, learns=False)
        self.meter, self.stopped, self.gate = Meter(), Event(), Event()
        self.gate.set()
        self.one = Semaphore(0)
        """Lets one pass through the gate."""
        job = InstanceJob(
            "lanes", SPEC, "fake", Path(), Placement("cpu"), settings.redis_url,
            settings.key_prefix, 60.0, "INFO",
        )  # fmt: skip
        warm = WarmBackend(self.backend, self.health)
        order = WarmInstance(job, warm, self.meter, self.stopped.is_set, None, None)
        reader, writer = Pipe(duplex=False)
        self.pipes = (reader, writer)
        self.thread = Thread(target=self._run, args=(order, writer))

    @staticmethod
    def _run(order: WarmInstance, reports: Connection) -> None:
        with suppress(SystemExit):  # of one that is lost
            run_lanes(order, None, reports)

    def _forward(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        wait_until(lambda: self.gate.is_set() or self.one.acquire(blocking=False), 120, "its turn")
        if self.fault:
            raise RuntimeError(self.fault)
        return doubled(inputs)

    def push(self, *values: float) -> list[PendingRequest]:
        """Ask for a row of each value, all in one write."""
        asked = [self.queue.hold(self._request(value), lambda: None) for value in values]
        self.queue.release()
        return asked

    def _request(self, value: float) -> InferRequest:
        x = Tensor.of("x", np.full((1, 2), value, np.float32))
        return InferRequest(self.queue.new_id(), 1, (x,), (), 100.0)

    def stage(self, *values: float) -> list[PendingRequest]:
        """Ask for two batches, and return once one is computed and the other one waits for it."""
        self.push(0.0)[0].wait()  # from which it knows how long a batch takes
        wait_until(lambda: not self.meter.busy_since, 10, "it is counted")
        self.gate.clear()
        asked = self.push(*values)
        wait_until(lambda: self.meter.untouched_lane, 10, "a batch waits for the device")
        return asked

    def held(self) -> list[int]:
        """Return how many requests each lane holds, of those that hold some."""
        return [n for key in self.keys.held_by("lanes") if (n := self.redis.llen(key))]

    def peer(self) -> WorkQueue:
        """Return another instance's end of the same queue."""
        return WorkQueue(open_wire(self.redis), self.keys, "peer", result_ttl_seconds=60.0)


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No batch goes back for its age, unless a test wants it."""
    monkeypatch.setattr(lanes, "LEAST_OVERDUE_SECONDS", 300.0)


@pytest.fixture
def two(settings: Settings) -> Iterator[TwoLanes]:
    two = TwoLanes(settings)
    two.thread.start()
    yield two
    two.stopped.set()
    two.gate.set()
    two.thread.join(timeout=30)
    two.redis.close()
    for pipe in two.pipes:
        pipe.close()
    assert not two.thread.is_alive()


def answers(asked: list[PendingRequest]) -> list[float]:
    """Return the first number of each answer."""
    return [float(each.wait().outputs[0].array()[0, 0]) for each in asked]


def test_a_full_batch_is_staged_while_one_is_computed(two: TwoLanes) -> None:
    asked = two.stage(1, 2, 3, 4)

    assert two.held() == [2, 2]
    assert len(two.backend.passes) == 2  # the first one, and the one that is computed
    two.gate.set()
    assert answers(asked) == [2, 4, 6, 8]
    wait_until(lambda: not two.held(), 10, "both are published")
    assert (two.meter.busy_since, two.meter.untouched_lane, two.meter.batch_count) == (0.0, 0, 3)


def test_what_fills_no_batch_waits_on_the_queue(two: TwoLanes) -> None:
    asked = two.stage(1, 2, 3, 4)
    asked += two.push(5)
    two.gate.set()

    assert answers(asked) == [2, 4, 6, 8, 10]
    assert [len(each["x"]) for each in two.backend.passes] == [1, 2, 2, 1]


def test_many_batches_are_answered_right_and_each_once(two: TwoLanes) -> None:
    values = [float(value) for value in range(1, 401)]
    asked = two.push(*values)

    assert answers(asked) == [2 * value for value in values]
    computed = [value for each in two.backend.passes for value in each["x"][:, 0].tolist()]
    assert sorted(computed) == values


def test_who_leaves_the_device_goes_on_once_the_staged_batch_has_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lanes, "TURN_LOOK_SECONDS", 300.0)
    monkeypatch.setattr(lanes, "HANDOVER_SECONDS", 300.0)
    device = SharedDevice(Meter())
    first, second = (Lane(device, number, lambda: False) for number in (lanes.MAIN, lanes.SECOND))
    began = list[str]()

    def take() -> None:
        second.take()
        began.append("second")

    first.take()
    thread = Thread(target=take)
    thread.start()
    wait_until(lambda: device.is_waited_for, 10, "a batch waits for the device")
    first.end()

    assert not device.try_take(lanes.MAIN, is_full=False)
    thread.join(timeout=60)
    assert began == ["second"]


def test_a_batch_is_published_and_the_next_one_claimed_ahead_in_one_write(
    two: TwoLanes, monkeypatch: pytest.MonkeyPatch
) -> None:
    claimed = list[int]()
    at_once = WorkQueue.publish_and_claim

    def counting(queue: WorkQueue, *arguments: Any, ahead: bool) -> list[Claimed]:
        batch = at_once(queue, *arguments, ahead=ahead)
        claimed.extend([len(batch)] if ahead else [])
        return batch

    monkeypatch.setattr(WorkQueue, "publish_and_claim", counting)
    asked = two.stage(*range(1, 9))
    two.one.release()

    wait_until(lambda: claimed, 10, "the first one is published beside the second")
    assert answers(asked[:2]) == [2, 4]
    assert claimed == [2]
    assert two.held() == [2, 2]


def test_answers_that_redis_did_not_take_are_given_beside_a_batch_that_is_computed(
    two: TwoLanes, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = list[Claimed]()
    at_once = WorkQueue.publish_and_claim

    def refused(queue: WorkQueue, claimed: list[Claimed], *rest: Any, ahead: bool) -> list[Claimed]:
        if ahead and not failed:  # of the two commands Redis takes the claim alone
            failed.extend(claimed)
            two.redis.script_flush()
            two.redis.script_load(script_text("claim"))
        return at_once(queue, claimed, *rest, ahead=ahead)

    monkeypatch.setattr(WorkQueue, "publish_and_claim", refused)
    asked = two.stage(*range(1, 9))
    two.one.release()

    assert answers(asked[:2]) == [2, 4]
    assert [each.id for each in failed] == [each.id for each in asked[:2]]
    two.gate.set()
    assert answers(asked) == [2 * value for value in range(1, 9)]
    wait_until(lambda: not two.held(), 10, "all are published")


def test_its_compute_time_is_the_devices_and_the_wait_is_none_of_it(two: TwoLanes) -> None:
    asked = two.stage(1, 2, 3, 4)
    staged_at = two.meter.busy_since
    wait_until(lambda: time.monotonic() > staged_at + 0.2, 10, "the first one computes for long")
    two.gate.set()
    first, _, second, _ = [each.wait().timings for each in asked]

    assert first.compute_seconds > 0.2 > second.compute_seconds
    assert second.batch_wait_seconds > 0.1


def test_a_request_that_the_model_fails_takes_no_neighbour_along_in_either_batch(
    two: TwoLanes,
) -> None:
    asked = two.stage(1, POISON, POISON, 4)
    two.gate.set()

    assert answers([asked[0], asked[3]]) == [2, 8]
    for each in asked[1:3]:
        with pytest.raises(ModelFailed, match="cannot stand -1"):
            each.wait()


def test_a_staged_batch_goes_to_an_instance_that_is_idle(two: TwoLanes) -> None:
    two.stage(1, 2, 3, 4)
    found: list[Claimed] = []
    peer, until = two.peer(), time.monotonic() + 60
    while not found and time.monotonic() < until:  # without a rest, as an instance does
        found = peer.claim(2, 0.0)

    assert [(each.attempts, each.request().inputs[0].array()[0, 0]) for each in found] == [
        (1, 3), (1, 4),
    ]  # fmt: skip
    assert two.held() == [2]


def test_a_staged_batch_goes_back_from_behind_one_that_takes_too_long(
    two: TwoLanes, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = two.stage(1, 2, 3, 4)
    monkeypatch.setattr(lanes, "LEAST_OVERDUE_SECONDS", 0.0)

    wait_until(lambda: two.held() == [2], 10, "it went back")
    assert two.redis.llen(two.keys.queues[0]) == 2
    two.gate.set()
    assert answers(asked) == [2, 4, 6, 8]
    assert {each.wait().timings.attempts for each in asked} == {1}


def test_told_to_stop_it_finishes_what_is_computed_and_gives_back_what_is_staged(
    two: TwoLanes,
) -> None:
    asked = two.stage(1, 2, 3, 4)
    front = two.meter.untouched_lane == 2  # else lane 1 waits, and hears that it is to stop
    two.stopped.set()
    if front:
        two.gate.set()
    else:
        wait_until(lambda: two.held() == [2], 10, "it went back")
        two.gate.set()
    two.thread.join(timeout=60)

    assert answers(asked[:2]) == [2, 4]
    assert not two.held()


def test_an_instance_that_is_lost_puts_back_the_batch_that_no_model_saw(
    two: TwoLanes, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost: list[InstanceLost] = []

    def end_lost(job: InstanceJob, queue: WorkQueue, error: InstanceLost, reports: object) -> None:
        lost.append(error)
        raise SystemExit

    monkeypatch.setattr(serving, "_end_lost", end_lost)
    asked = two.stage(1, 2, 3, 4)
    two.fault = "the device is gone"
    two.gate.set()
    two.thread.join(timeout=60)

    assert [each.suspects for each in lost] == [{asked[0].id, asked[1].id}]
    assert two.held() == [2]  # what ran is left to who ends the instance
    back = two.peer().claim(4, 0.0)
    assert [(each.id, each.attempts) for each in back] == [(each.id, 1) for each in asked[2:]]
