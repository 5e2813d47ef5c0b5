"""`ferry jobs`: what the jobs worker does, did and will do."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence

from ferry.commands.inspect_redis import redis_to_inspect
from ferry.commands.tables import Column, Row, one_line, show
from ferry.errors import EXIT_FAILED
from shared.errors import FerryError, RedisUnavailable
from shared.jobs.store import JobStore

JOB_COLUMNS = (
    Column("id", lambda row: row["id"]),
    Column("job", lambda row: row["kind"]),
    Column("model", lambda row: row["model"]),
    Column("state", lambda row: row["state"]),
    Column("progress", lambda row: f"{row['progress']:.1%}", is_number=True),
    Column("starts", lambda row: row["starts"], is_number=True),
    Column("submitted", lambda row: (row["submitted_at"] or "")[:19].replace("T", " ")),
    Column("step", lambda row: row["error"] or row["step"]),
)
NO_JOBS = "there are no jobs"
LISTED = 100


def list_jobs(environ: Mapping[str, str], *, as_json: bool) -> int:
    """Print the newest jobs, newest first; return the exit code."""
    with redis_to_inspect(environ) as (settings, client):
        rows = JobStore(client, settings).all(LISTED)
    show(rows, JOB_COLUMNS, as_json=as_json, nothing=NO_JOBS)
    return 0


def show_job(environ: Mapping[str, str], job_id: str, *, as_json: bool) -> int:
    """Print all that is known of one job; raises UnknownJob."""
    with redis_to_inspect(environ) as (settings, client):
        job = JobStore(client, settings).find(job_id)
    if as_json:
        show([job], JOB_COLUMNS, as_json=True, nothing=NO_JOBS)
    else:
        for name, value in job.items():
            print(f"{name:>13}  {one_line(str('' if value is None else value))}")
    return 0


def log_job(environ: Mapping[str, str], job_id: str, *, as_json: bool) -> int:
    """Print the last lines that a job said; raises UnknownJob."""
    with redis_to_inspect(environ) as (settings, client):
        store = JobStore(client, settings)
        store.find(job_id)
        lines = store.log(job_id)
    if as_json:
        show([{"line": line} for line in lines], (), as_json=True, nothing="")
    else:
        for line in lines:
            print(one_line(line))
    return 0


def cancel_jobs(environ: Mapping[str, str], ids: Sequence[str], *, as_json: bool) -> int:
    """Cancel jobs and print them; 1 when one could not be."""
    return _for_each(environ, ids, lambda store, job_id: store.cancel(job_id), as_json=as_json)


def retry_jobs(environ: Mapping[str, str], ids: Sequence[str], *, as_json: bool) -> int:
    """Begin failed and cancelled jobs again and print them; 1 when one could not be."""
    return _for_each(environ, ids, lambda store, job_id: store.retry(job_id), as_json=as_json)


def _for_each(
    environ: Mapping[str, str],
    ids: Sequence[str],
    act: Callable[[JobStore, str], Row],
    *,
    as_json: bool,
) -> int:
    rows: list[Row] = []
    with redis_to_inspect(environ) as (settings, client):
        store = JobStore(client, settings)
        for job_id in ids:
            try:
                rows.append(act(store, job_id))
            except RedisUnavailable:
                raise
            except FerryError as error:
                print(f"ferry: {error}", file=sys.stderr)
    if rows or as_json:
        show(rows, JOB_COLUMNS, as_json=as_json, nothing=NO_JOBS)
    return 0 if len(rows) == len(ids) else EXIT_FAILED
