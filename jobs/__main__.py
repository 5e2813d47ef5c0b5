"""Entry point of the jobs worker: `python -m jobs`."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Mapping
from functools import partial

from redis.exceptions import RedisError
from rq.exceptions import StopRequested

from jobs.functions import FUNCTIONS, Run
from jobs.reporter import Reporter
from jobs.worker import Interrupted, JobsWorker, JobTimedOut
from shared.errors import BadSetting, FerryError, RedisUnavailable, described
from shared.jobs.places import files_fault
from shared.jobs.rq_job import TableJob
from shared.settings import NO_TELEMETRY, Settings, start
from shared.wire.client import connect
from shared.wire.outage import Outage
from shared.wire.server_check import check_server

log = logging.getLogger(__name__)

AGAIN_SECONDS = 1.0
RQ_SAYS_AGAIN = "Worker %s: could not connect to Redis instance"
BACK_SECONDS = 600.0
"""How long a job that is done waits for a Redis that is away, to say so."""


class JobFailed(Exception):
    """A job failed; the reason is written down already."""


class _Once(logging.Filter):
    """Tells of an outage once for each cause, where rq does at each try, or with a traceback."""

    def __init__(self, outage: Outage) -> None:
        super().__init__()
        self._outage = outage

    def filter(self, record: logging.LogRecord) -> bool:
        error: object = record.exc_info[1] if record.exc_info else None
        if record.msg.startswith(RQ_SAYS_AGAIN) and isinstance(record.args, tuple):
            error = record.args[1]
        if not isinstance(error, RedisError):
            return True
        self._outage.note(error, "the jobs worker tries again")
        return False


def main() -> int:
    """Run jobs until told to stop; 2 for a bad setting or server."""
    try:
        settings = start(os.environ)
        if not settings.jobs:
            raise BadSetting("FERRY_JOBS is 0")
        if fault := files_fault(settings):
            raise BadSetting(fault)
        check_server(settings)
    except BadSetting as error:
        print(f"jobs: {error}", file=sys.stderr)
        return 2
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault(*NO_TELEMETRY)
    outage = Outage(log)
    logging.getLogger("rq.worker").setLevel(logging.WARNING)
    logging.getLogger("rq.worker").addFilter(_Once(outage))
    while not _worked(settings, outage):
        time.sleep(AGAIN_SECONDS)
    return 0


def _worked(settings: Settings, outage: Outage) -> bool:
    """Work until told to stop, or until Redis goes; tell whether it was told to."""
    try:
        client = connect(settings.redis_url, settings.key_prefix)
        worker = JobsWorker(client, settings, partial(perform, settings, dict(os.environ)), outage)
        log.info("jobs worker %s waits for jobs", worker.name)
        worker.work(logging_level="WARNING")
        return worker.asked_to_stop
    except StopRequested:
        return True
    except (RedisError, RedisUnavailable) as error:
        outage.note(error, "the jobs worker tries again")
        return False


def perform(settings: Settings, environ: Mapping[str, str], job: TableJob) -> None:
    """Do a job, in its own process; what it came to is in its record.

    Raises JobFailed with the reason there, and Interrupted for one that is to be begun again.
    """
    client = connect(settings.redis_url, settings.key_prefix)
    client.persist(job.key)
    client.hincrby(job.key, "ferry_starts", 1)
    reporter = Reporter(client, settings.key_prefix, job.id, int(settings.job_keep_seconds))
    try:
        with reporter:
            kind, order = job.kind, job.order
            log.info("%s of %s begins", kind, order.model)
            run = Run(job.id, job.upload, client, settings, environ, reporter)
            found = FUNCTIONS[kind](order, run)
            log.info("%s of %s is done", kind, order.model)
    except Interrupted:
        raise
    except KeyboardInterrupt as ended:
        reason = str(ended) if isinstance(ended, JobTimedOut) else "it was cancelled"
        raise _failed(job, reason) from None
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        reason = f"{where}{error.strerror or error}; begun again it goes on where it stopped"
        raise _failed(job, reason) from None
    except FerryError as error:
        raise _failed(job, error.message) from None
    except Exception as error:  # a border: whatever a job raises is its failure
        log.exception("job %s failed", job.id)
        raise _failed(job, described(error)) from None
    _write(job, "ferry_result", json.dumps(found))


def _failed(job: TableJob, reason: str) -> JobFailed:
    log.warning("job %s has failed: %s", job.id, reason)
    job.retries_left = 0
    _write(job, "ferry_error", reason)
    return JobFailed(reason)


def _write(job: TableJob, field: str, value: str) -> None:
    """Set a field of a job's record, as soon as Redis is there."""
    until = time.monotonic() + BACK_SECONDS
    while True:
        try:
            job.connection.hset(job.key, field, value)
            return
        except RedisError as error:
            if time.monotonic() > until:
                raise
            log.warning("job %s: %s; it waits to say that it has ended", job.id, error)
            time.sleep(AGAIN_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
