"""The jobs worker: takes jobs of the fixed table off rq's queue, one at a time, and runs no other.

    dequeued -> a process of its own, behind the models' instances -> finished, failed, cancelled
                     |                          |
                     | SIGTERM to the worker    '-- killed --> begun again where that is safe,
                     v                                         else failed with that reason
                 on the queue again

A job whose worker died is taken up by the next worker on its machine at once, for the dead one's
lock is free, and by any other when its signs of life have stopped for LOST_SECONDS.
"""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from redis import Redis
from redis.exceptions import RedisError
from rq import worker_registration
from rq.exceptions import NoSuchJobError
from rq.job import JobStatus
from rq.registry import StartedJobRegistry
from rq.timeouts import JobTimeoutException, UnixSignalDeathPenalty
from rq.utils import now
from rq.worker import Worker

from shared.jobs.keys import JobKeys
from shared.jobs.places import files_folder
from shared.jobs.rq_job import JobsQueue, TableJob
from shared.jobs.store import KILLED, JobStore, mark_cancelled
from shared.parent_death import die_with_parent_process
from shared.settings import Settings
from shared.wire.outage import Outage

log = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 5
LOST_SECONDS = 20
"""A job without a sign of life for so long is taken from its worker."""
LOOK_SECONDS = 10
"""How often an idle worker looks for jobs of dead ones."""
STOP_SECONDS = 20.0
"""A cancelled job that has not ended by then is killed."""
SWEEP_SECONDS = 3600.0
THREAD_VARIABLES = (
    "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS",
)  # fmt: skip
"""What libraries read when they are imported, which is in the job's process."""

Perform = Callable[[TableJob], None]


class Interrupted(KeyboardInterrupt):
    """The worker is to stop: the job goes back to the queue."""


class JobTimedOut(KeyboardInterrupt):
    """A job ran longer than it may. No job catches it as one of its own errors."""


class _DeathPenalty(UnixSignalDeathPenalty):  # type: ignore[misc]
    def handle_death_penalty(self, signum: int, frame: FrameType | None) -> None:
        if self._exception is JobTimeoutException:
            raise JobTimedOut(f"it ran longer than FERRY_JOB_TIMEOUT_SECONDS, {self._timeout} s")
        super().handle_death_penalty(signum, frame)


class JobsWorker(Worker):  # type: ignore[misc]
    """rq's worker with a fixed table of jobs, one process per job, and nothing called back.

    `perform` runs a job in its process. Overridden methods are rq's.
    """

    job_class = TableJob
    queue_class = JobsQueue
    death_penalty_class = _DeathPenalty
    max_connection_wait_time = 2.0
    log_job_description = False

    def __init__(self, client: Redis, settings: Settings, perform: Perform, outage: Outage) -> None:
        """Work on the queue under the settings' key prefix; an `outage` ends when Redis is seen."""
        self._outage = outage
        self._settings, self._perform, self._keys = settings, perform, JobKeys(settings.key_prefix)
        self._keep_seconds = int(settings.job_keep_seconds)
        self._cancel_seen: float | None = None
        self._swept = 0.0
        self._seen: set[bytes] = set()
        self._armed = self._told_to_stop = False
        self.asked_to_stop = False
        super().__init__(
            [JobsQueue.under(client, settings.key_prefix)], connection=client,
            serializer=TableJob(connection=client).serializer, log_job_description=False,
            job_monitoring_interval=HEARTBEAT_SECONDS, maintenance_interval=LOOK_SECONDS,
            worker_ttl=LOOK_SECONDS + 15, default_result_ttl=self._keep_seconds,
        )  # fmt: skip
        self._lock = _locked(_lock_file(settings, self.name))

    def run_maintenance_tasks(self) -> None:
        """Look for jobs of dead workers, and for what is kept no longer; no groups, no schedule."""
        queue = self.queues[0]
        self._bury(queue)
        self._put_back(queue)
        worker_registration.clean_worker_registry(queue)
        for key in self._keys.ended.values():
            self.connection.zremrangebyscore(key, 0, time.time())
        if time.monotonic() - self._swept > SWEEP_SECONDS or not self._swept:
            self._swept = time.monotonic()
            JobStore(self.connection, self._settings).sweep()
        self.last_cleaned_at = now()
        self._outage.end()

    def _put_back(self, queue: JobsQueue) -> None:
        """Put ids back that a worker took off the queue and died before it said so.

        They are there at two looks in a row.
        """
        taken = set(self.connection.lrange(queue.intermediate_queue_key, 0, -1))
        running = StartedJobRegistry(queue.name, connection=self.connection).key
        begun = {raw.partition(b":")[0] for raw in self.connection.zrange(running, 0, -1)}
        for raw in taken & self._seen - begun:
            if self.connection.lrem(queue.intermediate_queue_key, 1, raw):
                self.connection.lpush(queue.key, raw)
        self._seen = taken - begun

    def _bury(self, queue: JobsQueue) -> None:
        """Put the jobs of dead workers back to the queue, or let them fail."""
        key = StartedJobRegistry(queue.name, connection=self.connection).key
        for raw, lost_at in self.connection.zrange(key, 0, -1, withscores=True):
            job_id, _, execution = raw.decode(errors="replace").partition(":")
            name = self.connection.hget(b"rq:execution:" + raw, "worker_name")
            who = (name or b"").decode(errors="replace")
            if lost_at > time.time() and who != self.name and not _is_dead(self._settings, who):
                continue
            # subtle: of several workers that look, only who removes it goes on.
            if self.connection.zrem(key, raw):
                self.connection.zrem(f"rq:executions:{job_id}", execution)
                self._settle_dead(job_id, queue)

    def _settle_dead(self, job_id: str, queue: JobsQueue) -> None:
        try:
            job = TableJob.fetch(job_id, self.connection)
        except NoSuchJobError:
            return
        status = job.get_status(refresh=False)
        if status not in (JobStatus.STARTED, JobStatus.QUEUED):
            return  # it ended before its worker did
        if status == JobStatus.QUEUED:  # it was not begun, and its id is where rq moved it to
            self.connection.lrem(queue.intermediate_queue_key, 1, job_id)
            job.retries_left = max(job.retries_left or 0, 1)
        log.warning("job %s: its worker died", job_id)
        self.handle_job_failure(job, queue, exc_string=KILLED)

    def execute_job(self, job: TableJob, queue: JobsQueue) -> None:
        """Run a job in a process of its own, unless it has been run or cancelled meanwhile."""
        if job.get_status() != JobStatus.QUEUED:
            self.connection.lrem(queue.intermediate_queue_key, 1, job.id)
            return
        self._cancel_seen = None
        try:
            super().execute_job(job, queue)
        except RedisError as error:
            log.warning("job %s: %s; it is settled when Redis is back", job.id, error)
            self._horse_pid = 0

    def monitor_work_horse(self, job: TableJob, queue: JobsQueue) -> None:
        """Wait for a job's process; a stop meanwhile is passed on to it."""
        if self.asked_to_stop:
            self.kill_horse(signal.SIGTERM)
        super().monitor_work_horse(job, queue)

    def handle_warm_shutdown_request(self) -> None:
        """Stop: the job that runs ends, and goes back to the queue."""
        self.asked_to_stop = True
        if self.horse_pid:
            self.kill_horse(signal.SIGTERM)

    def maintain_heartbeats(self, job: TableJob) -> None:
        """Say that the job is alive, and kill one that does not end when it is to."""
        try:
            super().maintain_heartbeats(job)
            self._kill_cancelled(job)
        except RedisError as error:
            log.warning("job %s: no sign of life could be given: %s", job.id, error)

    def _kill_cancelled(self, job: TableJob) -> None:
        if self.connection.hget(job.key, "ferry_cancel") is None:
            return
        self._cancel_seen = self._cancel_seen or time.monotonic()
        if time.monotonic() - self._cancel_seen > STOP_SECONDS:
            self.kill_horse()

    def set_current_job_working_time(self, seconds: float, pipeline: Any = None) -> None:
        """Keep for how long the job has run, here alone."""
        self.current_job_working_time = seconds

    def get_heartbeat_ttl(self, job: TableJob) -> int:
        """Return for how many seconds a sign of life holds."""
        return LOST_SECONDS

    def setup_work_horse_signals(self) -> None:
        """Have the job's process die with the worker, end by SIGTERM, and stand back."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, self._interrupt)
        die_with_parent_process()
        if os.getppid() != self.pid:
            os._exit(1)
        _stand_back(self._settings)

    def perform_job(self, job: TableJob, queue: JobsQueue) -> bool:
        """Run a job in its process, which has forked."""
        job.perform = lambda: self._run(job)
        return bool(super().perform_job(job, queue))

    def _run(self, job: TableJob) -> None:
        """Do the job; a stop of the worker puts it to the head of the queue, which is no retry."""
        self._armed = True
        try:
            if self._told_to_stop:
                raise Interrupted
            self._perform(job)
        except Interrupted:
            job.retries_left = max(job.retries_left or 0, 0) + 1
            job.enqueue_at_front_on_retry = True
            raise
        finally:
            self._armed = False

    def _interrupt(self, _number: int, _frame: FrameType | None) -> None:
        self._told_to_stop = True
        if self._armed:
            self._armed = False
            raise Interrupted

    def handle_exception(self, job: TableJob, *exc_info: Any) -> None:
        """Do nothing: the reason is told where it is known."""

    def handle_job_failure(
        self,
        job: TableJob,
        queue: JobsQueue,
        started_job_registry: Any = None,
        exc_string: str = "",
    ) -> None:
        """Write down that a job failed or was cancelled, or put it back to the queue.

        Its dashboard would show a traceback unescaped: it gets none.
        """
        cancelled = self.connection.hget(job.key, "ferry_cancel") is not None
        if cancelled:
            job.retries_left = 0
        job.ended_at = job.ended_at or now()
        super().handle_job_failure(
            job, queue, started_job_registry, f"see: ferry jobs show {job.id}"
        )
        if cancelled:
            mark_cancelled(job, self._keep_seconds)

    def teardown(self) -> None:
        """Sign off, as far as Redis is there."""
        try:
            super().teardown()
        except RedisError as error:
            log.warning("not signed off: %s", error)
        finally:
            if not self.is_horse:
                _lock_file(self._settings, self.name).unlink(missing_ok=True)
                os.close(self._lock)


def _lock_file(settings: Settings, name: str) -> Path:
    return files_folder(settings) / f".worker-{name}"


def _locked(file: Path) -> int:
    """Return the descriptor of a file that is locked as long as its process lives."""
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(file, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor


def _is_dead(settings: Settings, name: str) -> bool:
    """Tell whether a worker is known to be dead: it was on this machine, and its lock is free."""
    if not name.isalnum():
        return False
    file = _lock_file(settings, name)
    try:
        descriptor = os.open(file, os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    file.unlink(missing_ok=True)
    return True


def _stand_back(settings: Settings) -> None:
    """Leave the cores to the models' instances, but for those that jobs are given."""
    os.nice(settings.job_nice)
    cores = sorted(os.sched_getaffinity(0))[-settings.job_cores :]
    os.sched_setaffinity(0, cores)
    for variable in THREAD_VARIABLES:
        os.environ[variable] = str(len(cores))
