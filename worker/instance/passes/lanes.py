"""Two batches in an instance's hands: one is computed, while the other one comes or goes.

    lane 1  claim, stack | device, split      | encode, publish, claim ahead, stack | device ...
    lane 2               | claim ahead, stack | device, split                       | encode ...

One lane is in front: it claims as an instance with one lane does. The other one claims ahead, while
the front computes and only what fills a batch; when the front leaves the device they change places.
With little to do there is never a second batch, and lane 2 sleeps. So lane 1 alone waits at Redis.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from threading import Condition

from redis.exceptions import RedisError

from shared.request_queue.claimed import Claimed, EncodedResults
from shared.request_queue.worker_end import WorkQueue
from worker.instance.batch_parts import DeviceTurn, TurnLost
from worker.meter import Meter

log = logging.getLogger(__name__)

MAIN, SECOND = 0, 1
TURN_LOOK_SECONDS = 0.01
"""Between two looks of a batch that waits for the device, whether it had better go back."""
STOP_LOOK_SECONDS = 0.5
OVERDUE = 2.0
"""So many times as long as the batch before may one compute while another waits for it."""
LEAST_OVERDUE_SECONDS = 0.05
HANDOVER_SECONDS = 0.002
"""fast: who leaves the device waits so long at most for the other lane to take it."""


class SharedDevice:
    """Who computes, who is in front, and until when each batch may run: the two lanes' state."""

    def __init__(self, meter: Meter) -> None:
        """Have nobody compute yet; `meter` is the instance's."""
        self.meter = meter
        self.is_closed = self.is_lost = False
        self._changed = Condition()
        self._front = MAIN
        self._computing: int | None = None
        self._since = self._last_seconds = 0.0
        self._may_claim_ahead = False
        self._is_ahead = self.is_waited_for = False
        self._clocks = [0.0, 0.0]

    def close(self) -> None:
        """Have both lanes end: what is staged goes back, what is computed is answered."""
        with self._changed:
            self.is_closed = True
            self._changed.notify_all()

    def lose(self) -> None:
        """Have no batch run any more: what is staged goes back."""
        self.is_lost = True
        self.close()

    def wait_to_claim(self, lane: int) -> bool | None:
        """Wait until a lane may claim; True for as the front, False for ahead, None for not yet."""
        with self._changed:
            while not self.is_closed:
                if self._front == lane:
                    return True
                if self._claims_ahead():
                    return False
                # Lane 1 also looks whether it is to stop; lane 2 has nothing to do by itself.
                if not self._changed.wait(STOP_LOOK_SECONDS if lane == MAIN else None):
                    return None
        return None

    def try_ahead(self, lane: int) -> bool:
        """Tell whether a lane is behind and is to claim ahead at once; then it counts as ahead."""
        with self._changed:
            return not self.is_closed and self._front != lane and self._claims_ahead()

    def _claims_ahead(self) -> bool:
        if self._computing != self._front or not self._may_claim_ahead:
            return False
        self._may_claim_ahead, self._is_ahead = False, True
        return True

    def is_front(self, lane: int) -> bool:
        """Tell whether a lane is in front; the other one then holds no batch any more."""
        with self._changed:
            if self._front != lane:
                self._is_ahead = False
            return self._front == lane

    def yield_front(self) -> None:
        """Have lane 1 in front again: lane 2 found nothing to do."""
        with self._changed:
            self._front = MAIN
            self._changed.notify_all()

    def try_take(self, lane: int, *, is_full: bool, seconds: float = 0.0) -> bool:
        """Wait so long for the device; tell whether it is this lane's now.

        With `is_full` there is a full batch behind its own.
        """
        with self._changed:
            if self._computing is not None and seconds:
                self.is_waited_for = True
                self._changed.wait(seconds)
                self.is_waited_for = False
            if self._computing is not None or self.is_lost:
                return False
            self._computing, self._since = lane, time.monotonic()
            self._may_claim_ahead = is_full and self._last_seconds > 0.0
            self._changed.notify_all()
            return True

    def end(self, lane: int) -> None:
        """Leave the device, to the other lane if that has a batch or is about to have one."""
        with self._changed:
            self._last_seconds = time.monotonic() - self._since
            self._computing = None
            if lane == self._front and self._is_ahead:
                self._front, self._is_ahead = 1 - lane, False
            self._changed.notify_all()
            # fast: the device is begun with before this lane's Python goes on with its answers.
            if self.is_waited_for:
                self._changed.wait_for(lambda: self._computing is not None, HANDOVER_SECONDS)

    @property
    def is_overdue(self) -> bool:
        """Tell whether who computes takes much longer than the batch before."""
        longest = max(OVERDUE * self._last_seconds, LEAST_OVERDUE_SECONDS)
        return time.monotonic() - self._since > longest

    def try_leave(self, lane: int) -> bool:
        """Give up the place in the line for the device, unless it is this lane's turn by now."""
        with self._changed:
            if self._front == lane or self._computing is None:
                return False
            self._is_ahead = False
            return True

    def set_clock(self, lane: int, since: float, *, untouched: bool = False) -> None:
        """Note since when a lane's batch is under way, 0 for none; the oldest one may be killed."""
        with self._changed:
            self._set_clock(lane, since)
            if untouched or self.meter.untouched_lane == lane + 1:
                self.meter.untouched_lane = lane + 1 if untouched else 0

    def _set_clock(self, lane: int, since: float) -> None:
        self._clocks[lane] = since
        other = self._clocks[1 - lane]
        self.meter.busy_since = min(since, other) if since and other else since or other

    def count(self, lane: int, requests: int, rows: int, seconds: float) -> None:
        """Count a lane's batch and stop its clock."""
        with self._changed:
            self._set_clock(lane, 0.0)
            self.meter.count_batch(requests, rows, seconds)


class Lane(DeviceTurn):
    """One lane's turns on the device, and its batches' clocks, as `Meter` has one lane's."""

    def __init__(
        self, device: SharedDevice, number: int, has_idle_peer: Callable[[], bool]
    ) -> None:
        """Take turns with the other lane; `has_idle_peer` asks for another instance."""
        self._device = device
        self._number = number
        self._has_idle_peer = has_idle_peer
        self.is_full = False
        """Whether a full batch waits behind the one in hand."""
        self._is_mine = self._has_run = False
        self._began = 0.0

    @property
    def is_main(self) -> bool:
        """Tell whether it is the main thread's, which waits at Redis and hears signals."""
        return self._number == MAIN

    def wait_to_claim(self) -> bool | None:
        """See `SharedDevice.wait_to_claim`."""
        return self._device.wait_to_claim(self._number)

    def try_ahead(self) -> bool:
        """See `SharedDevice.try_ahead`."""
        return self._device.try_ahead(self._number)

    def is_front(self) -> bool:
        """See `SharedDevice.is_front`."""
        return self._device.is_front(self._number)

    def yield_front(self) -> None:
        """See `SharedDevice.yield_front`."""
        self._device.yield_front()

    @property
    def row_limit(self) -> int:
        """See `Meter`."""
        return self._device.meter.row_limit

    def begin_batch(self) -> None:
        """Start the clock of a batch."""
        self._has_run = False
        self._began = time.monotonic()
        self._device.set_clock(self._number, self._began)

    def end_batch(self, requests: int, rows: int) -> None:
        """Count a batch and stop its clock."""
        self._device.count(self._number, requests, rows, time.monotonic() - self._began)

    def take(self) -> None:
        """Wait for the device; a batch that nobody touched raises TurnLost when that takes long.

        Also when another instance is idle. The wait is none of its running time.
        """
        if self._is_mine:
            return
        if not self._device.try_take(self._number, is_full=self.is_full):
            self._wait()
        self._is_mine = self._has_run = True

    def _wait(self) -> None:
        device, number, waited = self._device, self._number, time.monotonic()
        device.set_clock(number, 0.0, untouched=not self._has_run)
        while not device.try_take(number, is_full=self.is_full, seconds=TURN_LOOK_SECONDS):
            if device.is_lost or (not self._has_run and self._has_left()):
                device.set_clock(number, 0.0)
                raise TurnLost
        now = time.monotonic()
        self._began += now - waited
        device.set_clock(number, now)

    def end(self) -> None:
        """See `DeviceTurn.end`."""
        if self._is_mine:
            self._is_mine = False
            self._device.end(self._number)

    def lose(self) -> None:
        """See `DeviceTurn.lose`."""
        self._device.lose()

    def _has_left(self) -> bool:
        is_to_leave = self._device.is_closed or self._device.is_overdue or self._is_wanted()
        return is_to_leave and self._device.try_leave(self._number)

    def _is_wanted(self) -> bool:
        try:
            return self._has_idle_peer()
        except RedisError as error:
            log.debug("whether another instance is idle is not known, Redis fails: %s", error)
            return False


class LaneQueue(WorkQueue):
    """A `WorkQueue` that claims as one of two lanes may."""

    lane: Lane

    def claim(self, max_rows: int, max_delay_seconds: float) -> list[Claimed]:
        """Take a batch once the lane may; see `WorkQueue.claim`."""
        as_front = self.lane.wait_to_claim()
        if as_front is None:
            return []
        if not as_front:
            batch = self._held_ahead(self.claim_ahead(max_rows, max_delay_seconds))
        elif self.lane.is_main:
            batch = super().claim(max_rows, max_delay_seconds)
        else:
            batch = self._claim_at_once(max_rows, max_delay_seconds)
        return self._noted(batch, max_rows)

    def publish_and_claim(
        self,
        claimed: list[Claimed],
        answers: EncodedResults,
        max_rows: int,
        max_delay_seconds: float,
        *,
        ahead: bool = False,
    ) -> list[Claimed]:
        """Publish, and claim if the lane may at once, perhaps `ahead`; see `WorkQueue`."""
        ahead = ahead or self.lane.try_ahead()
        if ahead or (self.lane.is_main and self.lane.is_front()):
            batch = super().publish_and_claim(
                claimed, answers, max_rows, max_delay_seconds, ahead=ahead
            )
            return self._noted(self._held_ahead(batch) if ahead else batch, max_rows)
        self.publish(claimed, answers)
        if not self.lane.is_front():
            return []
        return self._noted(self._claim_at_once(max_rows, max_delay_seconds), max_rows)

    def _held_ahead(self, batch: list[Claimed]) -> list[Claimed]:
        if not batch:
            self.lane.is_front()  # else it is known as one that has a batch
        return batch

    def _claim_at_once(self, max_rows: int, max_delay_seconds: float) -> list[Claimed]:
        batch = self.claim_now(max_rows, max_delay_seconds)[0]
        if not batch:
            self.lane.yield_front()
        return batch

    def _noted(self, batch: list[Claimed], max_rows: int) -> list[Claimed]:
        """Note whether as many rows as fill a batch wait behind one, if theirs are as many."""
        rows = sum([item.rows for item in batch])
        self.lane.is_full = self.left_behind * rows >= len(batch) * max_rows > 0
        return batch
