"""Every job's record: submitted, listed, shown, cancelled, begun again, and forgotten in time."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from uuid import uuid4

import orjson
import redis
from rq.job import JobStatus
from rq.registry import CanceledJobRegistry, FailedJobRegistry

from shared.errors import BadRequest, JobEnded, JobNotEnded, QueueFull, UnknownJob
from shared.jobs.keys import RQ_JOB, JobKeys
from shared.jobs.orders import KINDS, JobOrder, is_id
from shared.jobs.places import files_folder, job_folder
from shared.jobs.rq_job import FUNCTION, JobsQueue, TableJob
from shared.settings import Settings
from shared.wire.client import asking

MAX_LISTED_JOBS = 1000
LOG_LINES = 200
MANY_DIGITS = 16
FORGOTTEN_AT_ONCE = 100
"""The most jobs that one submission makes room by."""
STATES = {
    "queued": "queued", "created": "queued", "deferred": "queued", "scheduled": "queued",
    "started": "started", "finished": "finished", "failed": "failed", "stopped": "cancelled",
    "canceled": "cancelled",
}  # fmt: skip
"""rq's words for what became of a job, and ours."""
ENDED = frozenset({"finished", "failed", "cancelled"})
KILLED = "the process that ran it died, and it is not begun again by itself"


class JobStore:
    """The jobs under one key prefix; every method raises RedisUnavailable."""

    def __init__(self, client: redis.Redis, settings: Settings) -> None:
        """Keep jobs at `client`, as long and as many as the settings say."""
        self._client, self._settings = client, settings
        self._keys = JobKeys(settings.key_prefix)
        self._keep_seconds = int(settings.job_keep_seconds)

    @staticmethod
    def new_id() -> str:
        """Return an id that no job has."""
        return uuid4().hex

    def submit(self, job_id: str, kind: str, order: JobOrder, upload: str = "") -> None:
        """Have a job done; `upload` is the ending of its uploaded file. Raises QueueFull."""
        self.check_room()
        queue = asking(lambda: JobsQueue.under(self._client, self._settings.key_prefix))
        job = TableJob.create(
            FUNCTION + kind,
            id=job_id, connection=self._client, origin=queue.name,
            timeout=max(1, int(self._settings.job_timeout_seconds)),
            result_ttl=self._keep_seconds, failure_ttl=self._keep_seconds,
            # Letters, digits, dots and dashes: the dashboard writes it into its page as it is.
            description=f"{kind} {order.model}",  # type: ignore[attr-defined]
            meta={"progress": 0.0, "step": "waiting"},
        )  # fmt: skip
        job.retries_left = KINDS[kind].retries
        # rq's own fields hold no word of a client's, for its dashboard would show it unescaped.
        told: dict[Any, Any] = {
            "ferry_kind": kind, "ferry_order": order.model_dump_json(exclude_defaults=True),
            "ferry_upload": upload,
        }  # fmt: skip
        with self._client.pipeline() as pipe:
            pipe.hset(job.key, mapping=told)
            pipe.zadd(self._keys.all, {job_id: time.time()})
            pipe.expire(self._keys.all, self._keep_seconds + int(job.timeout))
            asking(lambda: queue.enqueue_job(job, pipeline=pipe))
            asking(pipe.execute)
        self._make_room()

    def check_room(self) -> None:
        """Raise QueueFull when as many jobs wait as may."""
        waiting = int(asking(lambda: self._client.llen(self._keys.waiting)))
        if waiting >= self._settings.max_jobs:
            raise QueueFull(f"{waiting} jobs wait already, at most FERRY_MAX_JOBS may")

    def all(self, limit: int = MAX_LISTED_JOBS) -> list[dict[str, Any]]:
        """Return the newest jobs, newest first, in two round trips."""
        ids = _ids(asking(lambda: self._client.zrevrange(self._keys.all, 0, limit - 1)))
        with self._client.pipeline(transaction=False) as pipe:
            for job_id in ids:
                pipe.hgetall(RQ_JOB + job_id)
            found = asking(lambda: pipe.execute(raise_on_error=False)) if ids else []
        return [
            described(job_id, fields)
            for job_id, fields in zip(ids, found, strict=True)
            if isinstance(fields, dict) and b"ferry_kind" in fields  # others may be an error
        ]

    def find(self, job_id: str) -> dict[str, Any]:
        """Return one job; raises UnknownJob, also for one of another key prefix."""
        fields = asking(lambda: self._client.hgetall(RQ_JOB + job_id)) if is_id(job_id) else {}
        origin = fields.get(b"origin", b"")
        if b"ferry_kind" not in fields or origin != self._keys.queue.encode():
            raise UnknownJob(f"no job {job_id!r}: it was never there, or is kept no longer")
        return described(job_id, fields)

    def log(self, job_id: str, lines: int = LOG_LINES) -> list[str]:
        """Return the last lines that a job said."""
        found = asking(lambda: self._client.lrange(self._keys.log + job_id, -lines, -1))
        return [line.decode(errors="replace") for line in found]

    def cancel(self, job_id: str) -> dict[str, Any]:
        """End a job that waits or runs; raises UnknownJob, and JobEnded for one that has ended.

        One that runs is told so, and keeps what it has done.
        """
        job = self.find(job_id)
        if job["state"] in ENDED:
            raise JobEnded(f"job {job_id} has {job['state']} already")
        asking(lambda: self._client.hset(RQ_JOB + job_id, "ferry_cancel", 1))
        if job["state"] == "queued":
            asking(lambda: self._cancel_waiting(job_id))
        return self.find(job_id)

    def _cancel_waiting(self, job_id: str) -> None:
        # subtle: only who takes it off the queue decides; else a worker has it, and looks itself.
        if self._client.lrem(self._keys.waiting, 1, job_id):
            mark_cancelled(TableJob.fetch(job_id, self._client), self._keep_seconds)

    def retry(self, job_id: str) -> dict[str, Any]:
        """Begin a failed or cancelled job again, where it stopped if it can; raises UnknownJob.

        Raises JobNotEnded for one that waits or runs, and JobEnded for one that has finished.
        """
        job = self.find(job_id)
        if job["state"] not in ENDED:
            raise JobNotEnded(f"job {job_id} is {job['state']}: it has not ended")
        if job["state"] == "finished":
            raise JobEnded(f"job {job_id} has finished: there is nothing to begin again")
        asking(lambda: self._begin_again(job_id, KINDS[job["kind"]].retries))
        return self.find(job_id)

    def _begin_again(self, job_id: str, retries: int) -> None:
        job = TableJob.fetch(job_id, self._client)
        job.retries_left, job.ended_at = retries, None
        with self._client.pipeline() as pipe:
            pipe.persist(job.key)
            pipe.hdel(job.key, "ferry_error", "ferry_cancel", "ferry_result", "ended_at")
            for name in self._keys.ended.values():
                pipe.zrem(name, job_id)
            JobsQueue.under(self._client, self._settings.key_prefix).enqueue_job(job, pipeline=pipe)
            pipe.execute()

    def forget(self, ids: Sequence[str]) -> None:
        """Remove the records of jobs, and their own files as far as they are on this machine."""
        with self._client.pipeline() as pipe:
            for job_id in ids:
                pipe.delete(*self._keys.of_job(job_id))
                for name in self._keys.ended.values():
                    pipe.zrem(name, job_id)
                pipe.zrem(self._keys.all, job_id)
            asking(pipe.execute)
        for job_id in ids:
            shutil.rmtree(job_folder(self._settings, job_id), ignore_errors=True)

    def _make_room(self) -> None:
        """Forget the oldest ended jobs above the number that is kept; a few commands each time."""
        oldest = time.time() - self._keep_seconds - self._settings.job_timeout_seconds
        asking(lambda: self._client.zremrangebyscore(self._keys.all, 0, oldest))
        above = asking(lambda: self._client.zcard(self._keys.all)) - self._settings.job_keep_count
        if above <= 0:
            return
        oldest_ids = asking(
            lambda: self._client.zrange(self._keys.all, 0, min(above, FORGOTTEN_AT_ONCE) - 1)
        )
        ids = _ids(oldest_ids)
        with self._client.pipeline(transaction=False) as pipe:
            for raw in set(oldest_ids) - {job_id.encode() for job_id in ids}:
                pipe.zrem(self._keys.all, raw)  # not ours: anybody may have written it
            for job_id in ids:
                pipe.hget(RQ_JOB + job_id, "status")
            states = asking(pipe.execute)[len(oldest_ids) - len(ids) :]
        over = [
            job_id for job_id, state in zip(ids, states, strict=True)
            if state is None or STATES.get(state.decode(errors="replace")) in ENDED
        ]  # fmt: skip
        if over:
            self.forget(over)

    def sweep(self) -> None:
        """Remove what jobs left on this machine whose records are gone: nothing else's files."""
        oldest = time.time() - self._keep_seconds
        old = [
            each.name for each in files_folder(self._settings).iterdir()
            if is_id(each.name) and each.lstat().st_mtime < oldest
        ]  # fmt: skip
        with self._client.pipeline(transaction=False) as pipe:
            for job_id in old:
                pipe.exists(RQ_JOB + job_id)
            found = asking(pipe.execute) if old else []
        for job_id, is_kept in zip(old, found, strict=True):
            if not is_kept:
                shutil.rmtree(job_folder(self._settings, job_id), ignore_errors=True)


def mark_cancelled(job: TableJob, keep_seconds: int) -> None:
    """Write down that a job was cancelled, wherever rq has it."""
    given = {"connection": job.connection, "job_class": TableJob, "serializer": job.serializer}
    with job.connection.pipeline() as pipe:
        job.set_status(JobStatus.CANCELED, pipeline=pipe)
        FailedJobRegistry(job.origin, **given).remove(job, pipeline=pipe)
        CanceledJobRegistry(job.origin, **given).add(job, ttl=keep_seconds, pipeline=pipe)
        pipe.expire(job.key, keep_seconds)
        pipe.execute()


def described(job_id: str, fields: Mapping[bytes, bytes]) -> dict[str, Any]:
    """Return a job as people and programs see it, from its hash."""
    text = {
        k.decode(errors="replace"): v.decode(errors="replace")
        for k, v in fields.items() if k != b"data"
    }  # fmt: skip
    state = STATES.get(text.get("status", ""), "queued")
    meta = _object(text.get("meta"))
    if "ferry_cancel" in text:  # rq writes down a failure first
        state = {"started": "cancelling", "failed": "cancelled"}.get(state, state)
    error = text.get("ferry_error") or (KILLED if state == "failed" else None)
    order = _object(text.get("ferry_order"))
    return {
        "id": job_id,
        "kind": text.get("ferry_kind", ""),
        "model": str(order.get("model", "")),
        "state": state,
        "progress": 1.0 if state == "finished" else _share(meta.get("progress")),
        "step": str(meta.get("step", "")) if state not in ENDED else state,
        "submitted_at": text.get("created_at") or None,
        "started_at": text.get("started_at") or None,
        "ended_at": (text.get("ended_at") or None) if state in ENDED else None,
        "starts": _count(text.get("ferry_starts", "")),
        "order": order,
        "error": error if state == "failed" else None,
        "result": _json(text.get("ferry_result")),
    }


def _json(text: str | None) -> Any:
    """Read what can be read, and be told again as JSON: anybody may have written it."""
    try:
        found = None if text is None else orjson.loads(text)
        orjson.dumps(found)
    except (ValueError, TypeError):
        return None
    return found


def _object(text: str | None) -> dict[str, Any]:
    found = _json(text)
    return found if isinstance(found, dict) else {}


def _count(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < MANY_DIGITS else 0


def _share(value: Any) -> float:
    return min(max(float(value), 0.0), 1.0) if isinstance(value, int | float) else 0.0


def _ids(found: Iterable[bytes]) -> list[str]:
    """Return those that are ids of jobs: Redis may hold anything."""
    return [text for raw in found if is_id(text := raw.decode(errors="replace"))]


def checked_limit(raw: str) -> int:
    """Read how many jobs are listed; raises BadRequest."""
    if not raw.isascii() or not raw.isdigit() or not 1 <= int(raw[:6]) <= MAX_LISTED_JOBS:
        raise BadRequest(f"limit={raw!r} must be a whole number from 1 to {MAX_LISTED_JOBS}")
    return int(raw)
