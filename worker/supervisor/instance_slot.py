"""One place for a model instance: the process in it, and when to start the next one."""

from __future__ import annotations

import logging
import socket
import time
from contextlib import AbstractContextManager, nullcontext
from ctypes import Array
from math import inf
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, ForkServerProcess
from typing import NamedTuple

from shared.registry.log_settings import LogLevel
from shared.registry.snapshot import InstanceRecord, State
from shared.request_queue.keys import lanes_of
from shared.request_queue.limits import NO_LOSS, Limits, Loss
from shared.settings import Settings
from worker.devices import Placement
from worker.job import DEVICE_IS_LOST, LOST, InstanceJob
from worker.meter import Meter, MeterBoard, Rate
from worker.repository.file_kinds import trusted_backends
from worker.repository.models import ServedModel
from worker.supervisor.devices.device_ledger import DeviceLedger

log = logging.getLogger(__name__)

HOST = socket.gethostname()
JOIN_SECONDS = 1.0
"""For a process that is known to have ended."""
LONGEST_DEATH_SECONDS = 10.0
"""From SIGKILL to the end of a process; one that is still there then is stuck in the kernel."""
LOST_PAUSE_SECONDS = 0.5
"""Until an instance is replaced that was lost before it answered a single batch."""
CLOSED_LOOK_SECONDS = 5.0
"""Between two looks whether a device is open again."""
LONGEST_PAUSE_SECONDS = 60.0
FIRST_PASS_FACTOR = 3.0
"""A pass of the warm-up may take so many times as long as a batch: much is done at a first one."""


class SlotHost(NamedTuple):
    """The slots' surroundings: the supervisor's id, and what it makes processes with."""

    supervisor: str
    settings: Settings
    context: ForkServerContext
    ledger: DeviceLedger
    meters: MeterBoard
    guard: AbstractContextManager[None] = nullcontext()
    memory_token: str = ""
    """Of the shared memory that its instances see."""
    store_token: str = ""
    """Of the body stores that they know."""


class InstanceSlot:
    """Holds at most one process; each process that starts in it has an instance id of its own."""

    def __init__(
        self, model: ServedModel, placement: Placement, index: int, machine: SlotHost
    ) -> None:
        """Prepare; `start` forks."""
        self.model = model
        self.process: ForkServerProcess | None = None
        self.reports: Connection | None = None
        self.start_at = 0.0
        self.recorded: InstanceRecord | None = None
        self._placement = self._next_placement = placement
        self._name = f"{machine.supervisor}-{index}"
        self._supervisor, self._settings, self._context, self._ledger, board, *_ = machine
        self._guard, self._memory_token = machine.guard, machine.memory_token
        self._store_token = machine.store_token
        self._meter_at = page, index = board.take()
        self.meter = page[index]
        self._rate = Rate(time.monotonic())
        self.had_chance = False
        """Whether a process of it was ready once, or failed: a version need not wait for it."""
        self._starts = 0
        self._started_at = self._killed_at = 0.0
        self._overdue = ""
        self._failures_in_a_row = 0
        self._state: State = "starting"
        self._reason = ""
        self._note = self._lost = ""
        self.loss = NO_LOSS
        """What its last process said before it ended."""
        self._leave_by = 0.0
        self._device = ""
        self._memory_bytes = 0
        self._cold = ""

    @property
    def state(self) -> State:
        """Return the state that the process reported last."""
        return self._state

    @property
    def reason(self) -> str:
        """Return why there is no ready process, empty when there is one."""
        return self._reason

    @property
    def _device_name(self) -> str:
        """Return what people know its device by: a GPU's number changes, its UUID does not."""
        device, uuid = self._placement.device, self._placement.uuid
        return f"{device} ({uuid})" if uuid else device

    @property
    def _fails_here_alone(self) -> bool:
        """Tell whether its content got ready on other devices: what killed it is not the model."""
        return self._ledger.is_served_beside(self.model.spec.key, self._device_name)

    @property
    def instance_id(self) -> str:
        """Return the id of the process that is, or was last, in this slot."""
        return f"{self._name}.{self._starts}"

    def start(self) -> None:
        """Fork a new process into the slot, unless its device is closed."""
        self._placement = self._next_placement
        if closed := self._ledger.why_closed_to(self.model.spec.key, self._device_name):
            self._state, self._reason, self.had_chance = "failed", closed, True
            self.start_at = time.monotonic() + CLOSED_LOOK_SECONDS
            return
        self._starts += 1
        self._started_at, self._killed_at, self._overdue = time.monotonic(), 0.0, ""
        self._note = self._lost = ""
        self.loss, self._leave_by = NO_LOSS, 0.0
        self._state = "starting"  # for the reason of its last failure, until it is ready
        self._memory_bytes = self.meter.memory_bytes or self._memory_bytes
        self.meter.reset()
        self._rate = Rate(time.monotonic())
        settings = self._settings
        job = InstanceJob(
            self.instance_id, self.model.spec, self.model.config.backend, self.model.file,
            self._placement, settings.redis_url, settings.key_prefix,
            settings.result_ttl_seconds, settings.log_level, Limits.usual(settings),
            trusted_backends(settings), self.model.config.warmup, self._cold,
            settings.require_verified, self._memory_bytes, settings.max_growth_bytes,
            settings.log_format, settings.traces_url, settings.state_dir,
            settings.shared_body_bytes, settings.body_urls,
        )  # fmt: skip
        reports, child_end = self._context.Pipe(duplex=False)
        process = self._context.Process(
            target=run_job, args=(job, child_end, *self._meter_at), name=self.instance_id
        )
        try:
            with self._guard:
                process.start()
        except (OSError, EOFError) as error:  # no process or memory left, or the forkserver died
            reports.close()
            self._fail(f"cannot start a process: {error}")
            return
        finally:
            child_end.close()
        self.process, self.reports = process, reports
        log.info("%s: starting %s on %s", self.model.spec.key, self.instance_id, self._placement)

    def _fail(self, reason: str) -> None:
        """Record the reason of a failure and the time of the next try, after a growing pause."""
        self._failures_in_a_row += 1
        self.had_chance = True
        pause = min(LONGEST_PAUSE_SECONDS, 2.0**self._failures_in_a_row)
        self._state, self._reason = "failed", reason
        self.start_at = time.monotonic() + pause
        log.error("%s: %s; next start in %.0f s", self.model.spec.key, reason, pause)

    def read_reports(self) -> bool:
        """Take in the process's report, if there is one; tell whether the state changed."""
        if self.reports is None or not self.reports.poll():
            return False
        try:
            word, said, *more = self.reports.recv()
        except EOFError:
            self.reports.close()
            self.reports = None
            return False
        if word == LOST:
            self._lost, self.loss = said, Loss(said, more[0])
            self._expect_end()
            return False
        self._state, self.had_chance = word, True
        self._reason, self._note = ("", said) if self._state == "ready" else (said, "")
        if self._state == "ready":
            self._device = more[0] if more else ""
            self._failures_in_a_row = 0
            self._ledger.served(self.model.spec.key, self._device_name)
            log.info("%s: %s is ready", self.model.spec.key, self.instance_id)
        else:
            self._expect_end()
        return True

    def _expect_end(self) -> None:
        """Note that the process is to end by itself: one that hangs, in a driver say, is killed."""
        self._leave_by = self._leave_by or time.monotonic() + self._settings.max_batch_seconds

    def reap(self, max_batch_seconds: float, *, has_ended: bool) -> str | None:
        """Return the id of an instance that died and whose work must be put back, if one did.

        `has_ended` tells that its process has. Kills an instance whose batch runs longer than
        `max_batch_seconds`, or that does not get ready; one that survives that is abandoned. One
        that had been ready is replaced at once; one that failed to load is tried again after a
        growing pause.
        """
        if self.process is None:
            return None
        self._kill_overdue(max_batch_seconds)
        if has_ended:  # fast: to ask each slot at each tick costs many models much
            self.read_reports()
            code = self.process.exitcode
            if code == DEVICE_IS_LOST:
                key = self.model.spec.key
                self._ledger.failed(key, self._device_name, self.loss.suspects)
            self._note_end(f"{self.instance_id} ended with exit code {code}")
            self._close()
        elif self._is_immortal:
            self._note_end(f"{self.instance_id} was abandoned, it does not die")
            self._abandon()
        else:
            return None
        self.recorded = None
        if self.meter.untouched_lane:
            lane = lanes_of(self.instance_id)[self.meter.untouched_lane - 1]
            self.loss = self.loss._replace(untouched=lane)
        return self.instance_id

    def _note_end(self, ended: str) -> None:
        """Say why there is no process any more, and when the next one starts."""
        if self._state == "ready":
            reason = self._lost or ended
            log.warning("%s: %s: %s, replacing it", self.model.spec.key, self.instance_id, reason)
            has_answered = self.meter.batch_count or not self._lost
            pause = 0.0 if has_answered else LOST_PAUSE_SECONDS
            self._state, self._reason, self.start_at = "starting", reason, time.monotonic() + pause
        elif self._state == "failed":
            self._fail(self._reason)
        elif self._overdue:
            self._fail(f"failed to load '{self.model.spec.name}', {self._overdue}")
        elif self.meter.making_up_since and not self._cold and not self._fails_here_alone:
            self._start_cold(ended)
        else:
            self._fail(f"failed to load '{self.model.spec.name}', {self.model.file}: {ended}")

    def _limits(self, max_batch_seconds: float) -> list[tuple[float, str]]:
        """Return until when its batch, a pass of its warm-up, its load or its end may take."""
        busy, warming = self.meter.busy_since, self.meter.making_up_since
        longest = self._settings.max_load_seconds
        limits = []
        if busy:
            limits.append((busy + max_batch_seconds, f"batch ran over {max_batch_seconds} s"))
        if warming:
            until = warming + FIRST_PASS_FACTOR * max_batch_seconds
            limits.append((until, "a pass of its warm-up runs too long"))
        if self._state == "starting":
            limits.append((self._started_at + longest, f"not ready after {longest:.0f} s"))
        if self._leave_by:
            limits.append((self._leave_by, "it was to end and does not"))
        return limits

    def _kill_overdue(self, max_batch_seconds: float) -> None:
        """Kill the process when something takes too long."""
        now = time.monotonic()
        overdue = [why for until, why in self._limits(max_batch_seconds) if now > until]
        if self._killed_at or not overdue:
            return
        log.error("%s: %s, killing it", self.instance_id, overdue[0])
        if self._state == "starting" and now > self._started_at + self._settings.max_load_seconds:
            longest = self._settings.max_load_seconds
            self._overdue = f"{self.model.file}: it took over {longest:.0f} s, killed"
        self._kill()

    def _kill(self) -> None:
        assert self.process is not None, "only a slot with a process is emptied by force"
        self.process.kill()
        self._killed_at = time.monotonic()

    @property
    def _is_immortal(self) -> bool:
        """Tell whether a process survives SIGKILL, as one does that is stuck in a driver."""
        return bool(self._killed_at) and time.monotonic() - self._killed_at > LONGEST_DEATH_SECONDS

    def _abandon(self) -> None:
        """Go on without the process, which nobody can end: its device is fenced."""
        assert self.process is not None, "only a slot with a process is given up"
        log.error(
            "%s: process %s survives SIGKILL, as one that is stuck in a driver; it is abandoned",
            self.instance_id, self.process.pid,
        )  # fmt: skip
        self._ledger.fence(self._device_name, self.instance_id, self.process)
        self._forget_process()

    def leave_device(self) -> None:
        """Ask the process to finish its batch and leave, if its device is quarantined."""
        key = self.model.spec.key
        if self.process and self._ledger.is_quarantined_for(key, self._device_name):
            self._expect_end()
            self.process.terminate()

    def _start_cold(self, ended: str) -> None:
        """Have the next process left alone with what took this one down: nobody asked it that."""
        self._cold = f"{ended} when it was warmed up with inputs that were made up"
        log.warning("%s: %s, the next is served cold", self.model.spec.key, ended)
        self._state, self._reason, self.start_at = "starting", "", time.monotonic()

    def _close(self) -> None:
        assert self.process is not None, "only a slot with a process is closed"
        self.process.join(JOIN_SECONDS)
        self.process.close()
        self._forget_process()

    def _forget_process(self) -> None:
        self.process = None
        if self.reports is not None:
            self.reports.close()
            self.reports = None

    def stop(self, *, kill: bool) -> None:
        """Ask the process to finish its batch and leave, or kill it; empty the slot once it did.

        One that survives that is abandoned a while later.
        """
        assert self.process is not None, "only a slot with a process is stopped"
        if not self.process.is_alive():
            self._close()
        elif not kill:
            self.process.terminate()
        elif not self._killed_at:
            log.error("%s: does not stop, killing it", self.instance_id)
            self._kill()
        elif self._is_immortal:
            self._abandon()

    def log_as(self, level: LogLevel) -> None:
        """Have this slot's processes log as the supervisor does."""
        self.meter.log_level, self.meter.iso_times = level.number, level.iso_times

    def measure(self, rested_until: float) -> None:
        """Bring the instance's rate up to date, at a heartbeat; it rested until the one then."""
        self._rate.rest_until(rested_until)
        self._rate.update(self.meter, time.monotonic())

    @property
    def is_at_rest(self) -> bool:
        """Tell whether its figures stay as they are while its meter does."""
        is_busy = self.meter.busy_since > 0.0
        return not (is_busy or self._rate.is_answering or self._rate.per_second)

    @property
    def due_at(self) -> float:
        """Return when it is next to be looked after, though nothing stirs before."""
        if self.process is None:
            return self.start_at
        if self._killed_at:
            return self._killed_at + LONGEST_DEATH_SECONDS
        return min((at for at, _ in self._limits(self._settings.max_batch_seconds)), default=inf)

    @property
    def is_answering(self) -> bool:
        """Tell whether it answered something before the last heartbeat."""
        return self._state == "ready" and self._rate.is_answering

    @property
    def is_failing(self) -> bool:
        """Tell whether it failed every request of many batches, and may be at fault."""
        return self._state == "ready" and self.meter.is_failing

    def replace(self, reason: str) -> None:
        """Have the process finish its batch and leave; the next one follows at once."""
        if self.process is not None and not self._lost:
            log.error("%s: %s: %s, it is to leave", self.model.spec.key, self.instance_id, reason)
            self._lost = reason
            self._expect_end()
            self.process.terminate()

    @property
    def placement(self) -> Placement:
        """Return where its next process runs."""
        return self._next_placement

    def move(self, placement: Placement) -> None:
        """Have the next process run elsewhere, and follow soon, if that is another place."""
        if placement != self._next_placement:
            self._next_placement = placement
            self.replace(f"it moves to {placement.device}")

    def record(self) -> InstanceRecord:
        """Return this slot's record for the registry."""
        spec = self.model.spec
        return InstanceRecord(
            id=self.instance_id,
            supervisor=self._supervisor,
            model=spec.name,
            version=spec.version,
            revision=spec.revision,
            state=self._state,
            device=self._device or self._placement.device,
            uuid="" if self._device == "cpu" else self._placement.uuid,
            memory_bytes=self.meter.memory_bytes,
            host=HOST,
            pid=(self.process.pid or 0) if self.process else 0,
            reason=self._reason,
            note=self._note,
            answered_count=self.meter.answered_count,
            requests_per_second=round(self._rate.per_second, 2),
            capacity_per_second=round(self.meter.capacity_per_second, 2),
            last_batch_rows=self.meter.last_batch_rows,
            last_batch_seconds=round(self.meter.last_batch_seconds, 6),
            row_limit=self.meter.row_limit,
            device_faults=self._ledger.fault_count(self._device_name),
            device_closed=self._ledger.why_closed(self._device_name),
            shared_memory="" if spec.steps else self._memory_token,
            body_stores="" if spec.steps else self._store_token,
        )


def run_job(job: InstanceJob, reports: Connection, page: Array[Meter], index: int) -> None:
    """Run an instance to its end, in a process that the forkserver made.

    Imports the instance's room here only: the supervisor's own process has no torch.
    """
    from worker.instance.process import run_instance  # noqa: PLC0415

    run_instance(job, reports, page[index])
