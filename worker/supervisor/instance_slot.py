"""One place for a model instance: the process in it, and when to start the next one."""

from __future__ import annotations

import logging
import socket
import time
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, ForkServerProcess

from shared.registry.log_settings import LogLevel
from shared.registry.snapshot import InstanceRecord, State
from shared.request_queue.limits import Limits
from shared.settings import Settings
from worker.devices import Placement
from worker.job import LOST, InstanceJob
from worker.meter import Meter, Rate
from worker.repository.file_kinds import trusted_backends
from worker.repository.models import ServedModel

log = logging.getLogger(__name__)

HOST = socket.gethostname()
LONGEST_PAUSE_SECONDS = 60.0
FIRST_PASS_FACTOR = 3.0
"""A pass of the warm-up may take so many times as long as a batch: much is done at a first one."""


class InstanceSlot:
    """Holds at most one process; each process that starts in it has an instance id of its own."""

    def __init__(
        self,
        model: ServedModel,
        placement: Placement,
        index: int,
        supervisor: str,
        settings: Settings,
        context: ForkServerContext,
    ) -> None:
        """Prepare; `start` forks."""
        self.model = model
        self.process: ForkServerProcess | None = None
        self.reports: Connection | None = None
        self.start_at = 0.0
        self.recorded: InstanceRecord | None = None
        self._placement = placement
        self._name = f"{supervisor}-{index}"
        self._supervisor = supervisor
        self._settings = settings
        self._context = context
        self._meter = context.RawValue(Meter)
        self._rate = Rate(time.monotonic())
        self._starts = 0
        self._failures_in_a_row = 0
        self._state: State = "starting"
        self._reason = ""
        self._note = self._lost = ""
        self._suspects: list[str] = []
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
    def instance_id(self) -> str:
        """Return the id of the process that is, or was last, in this slot."""
        return f"{self._name}.{self._starts}"

    def start(self) -> None:
        """Fork a new process into the slot."""
        self._starts += 1
        self._note = self._lost = ""
        self._suspects = []
        self._state = "starting"  # for the reason of its last failure, until it is ready
        self._memory_bytes = self._meter.memory_bytes or self._memory_bytes
        self._meter.reset()
        self._rate = Rate(time.monotonic())
        settings = self._settings
        job = InstanceJob(
            self.instance_id, self.model.spec, self.model.config.backend, self.model.file,
            self._placement, settings.redis_url, settings.key_prefix,
            settings.result_ttl_seconds, settings.log_level, Limits.usual(settings),
            trusted_backends(settings), self.model.config.warmup, self._cold,
            settings.require_verified, self._memory_bytes,
        )  # fmt: skip
        reports, child_end = self._context.Pipe(duplex=False)
        process = self._context.Process(
            target=run_job, args=(job, child_end, self._meter), name=self.instance_id
        )
        try:
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
        pause = min(LONGEST_PAUSE_SECONDS, 2.0**self._failures_in_a_row)
        self._state, self._reason = "failed", reason
        self.start_at = time.monotonic() + pause
        log.error("%s: %s; next start in %.0f s", self.model.spec.key, reason, pause)

    def read_reports(self) -> bool:
        """Take in the process's report, if there is one; tell whether the state changed."""
        if self.reports is None or not self.reports.poll():
            return False
        try:
            word, said, *device = self.reports.recv()
        except EOFError:
            self.reports.close()
            self.reports = None
            return False
        if word == LOST:
            self._lost, self._suspects = said
            return False  # it is about to end
        self._state = word
        self._reason, self._note = ("", said) if self._state == "ready" else (said, "")
        if self._state == "ready":
            self._device = device[0] if device else ""
            self._failures_in_a_row = 0
            log.info("%s: %s is ready", self.model.spec.key, self.instance_id)
        return True

    def reap(self, max_batch_seconds: float, *, has_ended: bool) -> str | None:
        """Return the id of an instance that died and whose work must be put back, if one did.

        `has_ended` tells that its process has. Kills an instance whose batch runs longer than
        `max_batch_seconds`. One that had been ready is replaced at once; one that failed to load is
        tried again after a growing pause.
        """
        if self.process is None:
            return None
        killed = self._kill_overdue(max_batch_seconds)
        if not (has_ended or killed):  # fast: to ask each slot at each tick costs many models much
            return None
        self.process.join()
        self.read_reports()
        ended = f"{self.instance_id} ended with exit code {self.process.exitcode}"
        if self._state == "ready":
            reason = self._lost or ended
            log.warning("%s: %s: %s, replacing it", self.model.spec.key, self.instance_id, reason)
            self._state, self._reason, self.start_at = "starting", reason, time.monotonic()
        elif self._state == "failed":
            self._fail(self._reason)
        elif self._meter.making_up_since and not self._cold:
            self._start_cold(ended)
        else:
            self._fail(f"failed to load '{self.model.spec.name}', {self.model.file}: {ended}")
        self._close()
        self.recorded = None
        return self.instance_id

    def _kill_overdue(self, max_batch_seconds: float) -> bool:
        """Kill the process when its batch, or a pass of its warm-up, runs too long; tell so."""
        assert self.process is not None, "only a slot with a process is looked at"
        now, busy, warming = time.monotonic(), self._meter.busy_since, self._meter.making_up_since
        if busy and now - busy > max_batch_seconds:
            log.error("%s: batch ran over %s s, killing it", self.instance_id, max_batch_seconds)
        elif warming and now - warming > FIRST_PASS_FACTOR * max_batch_seconds:
            log.error("%s: a pass of its warm-up runs too long, killing it", self.instance_id)
        else:
            return False
        self.process.kill()
        return True

    def _start_cold(self, ended: str) -> None:
        """Have the next process left alone with what took this one down: nobody asked it that."""
        self._cold = f"{ended} when it was warmed up with inputs that were made up"
        log.warning("%s: %s, the next is served cold", self.model.spec.key, ended)
        self._state, self._reason, self.start_at = "starting", "", time.monotonic()

    def _close(self) -> None:
        assert self.process is not None, "only a slot with a process is closed"
        self.process.join()
        self.process.close()
        self.process = None
        if self.reports is not None:
            self.reports.close()
            self.reports = None

    def stop(self, *, kill: bool) -> None:
        """Ask the process to finish its batch and leave, or kill it; empty the slot once it did."""
        assert self.process is not None, "only a slot with a process is stopped"
        if not self.process.is_alive():
            self._close()
        elif kill:
            log.error("%s: does not stop, killing it", self.instance_id)
            self.process.kill()
        else:
            self.process.terminate()

    def log_as(self, level: LogLevel) -> None:
        """Have this slot's processes log as the supervisor does."""
        self._meter.log_level, self._meter.iso_times = level.number, level.iso_times

    def measure(self) -> None:
        """Bring the instance's rate up to date, at a heartbeat."""
        self._rate.update(self._meter, time.monotonic())

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
            memory_bytes=self._meter.memory_bytes,
            host=HOST,
            pid=(self.process.pid or 0) if self.process else 0,
            reason=self._reason,
            note=self._note,
            answered_count=self._meter.answered_count,
            requests_per_second=round(self._rate.per_second, 2),
            capacity_per_second=round(self._meter.capacity_per_second, 2),
            last_batch_rows=self._meter.last_batch_rows,
            last_batch_seconds=round(self._meter.last_batch_seconds, 6),
            row_limit=self._meter.row_limit,
        )


def run_job(job: InstanceJob, reports: Connection, meter: Meter) -> None:
    """Run an instance to its end, in a process that the forkserver made.

    Imports the instance's room here only: the supervisor's own process has no torch.
    """
    from worker.instance.process import run_instance  # noqa: PLC0415

    run_instance(job, reports, meter)
