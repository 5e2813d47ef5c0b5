"""What a job says while it runs, written to Redis now and then, and whether it is to end.

the job's own thread                       the reporter's thread, twice a second
------------------------------------       ------------------------------------------------
progress(0.4, "row 400 of 1000")  ----->   rq's `meta`, the same figure for everybody
logging.info("...")               ----->   the tail of the log
Cancelled is raised               <-----   `ferry_cancel` is set
"""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
from collections import deque
from types import FrameType
from typing import Any

import redis
from redis.exceptions import RedisError

from jobs.bulk.bulk import Cancelled
from shared.jobs.keys import RQ_JOB, JobKeys
from shared.jobs.store import LOG_LINES

log = logging.getLogger(__name__)

REPORT_SECONDS = 0.5
LONGEST_LINE = 1000
CANCEL_SIGNAL = signal.SIGUSR1


class Reporter(logging.Handler):
    """One job's report, as long as the job runs; a Redis that is away is told later."""

    def __init__(self, client: redis.Redis, prefix: str, job_id: str, keep_seconds: int) -> None:
        """Report job `job_id`; its log is kept so long."""
        super().__init__(logging.INFO)
        self._client, self._key = client, RQ_JOB + job_id
        self._log_key, self._keep_seconds = JobKeys(prefix).log + job_id, keep_seconds
        self._lines: deque[str] = deque(maxlen=LOG_LINES)
        self._meta: dict[str, Any] = {"progress": 0.0, "step": "started"}
        self._told: dict[str, Any] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reporter", daemon=True)
        self._signalled = False

    def __enter__(self) -> Reporter:
        """Begin to report, and to look whether the job is to end: Cancelled is raised then."""
        signal.signal(CANCEL_SIGNAL, _raise_cancelled)
        logging.getLogger().addHandler(self)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Report for the last time; a Redis that is away misses it."""
        signal.signal(CANCEL_SIGNAL, signal.SIG_IGN)
        logging.getLogger().removeHandler(self)
        self._over.set()
        self._thread.join()
        self._report()

    def progress(self, share: float, step: str) -> None:
        """Say how far the job is, from 0 to 1, and what it does: words of ours and numbers."""
        self._meta = {"progress": round(min(max(share, 0.0), 1.0), 4), "step": step}

    def say(self, line: str) -> None:
        """Add a line to the job's log."""
        log.info("%s", line)

    def emit(self, record: logging.LogRecord) -> None:
        """Take a line of the log: what it says, without tracebacks."""
        said = " ".join(record.getMessage().split())[:LONGEST_LINE]
        self._lines.append(said.encode(errors="backslashreplace").decode())

    def _run(self) -> None:
        while not self._over.wait(REPORT_SECONDS):
            if self._report() and not self._signalled:
                self._signalled = True
                os.kill(os.getpid(), CANCEL_SIGNAL)

    def _report(self) -> bool:
        """Write what is new; tell whether the job is to end."""
        meta, lines = self._meta, list(self._lines)
        try:
            with self._client.pipeline() as pipe:
                pipe.hget(self._key, "ferry_cancel")
                if meta != self._told:
                    pipe.hset(self._key, "meta", json.dumps(meta))
                if lines:
                    pipe.rpush(self._log_key, *lines)
                    pipe.ltrim(self._log_key, -LOG_LINES, -1)
                    pipe.expire(self._log_key, self._keep_seconds)
                cancel = pipe.execute()[0]
        except RedisError:
            return False
        self._told = meta
        for _ in lines:
            self._lines.popleft()
        return cancel is not None


def _raise_cancelled(_number: int, _frame: FrameType | None) -> None:
    raise Cancelled
