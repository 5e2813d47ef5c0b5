"""Runs bulk jobs as `ferry predict` does, when told to.

A child of the benchmark (`python -m bench.children.bulk_job REDIS_URL MODEL ROWS OUTPUT`): runs one
job and prints `ready`, then answers each line with the rows a second of another. It ends with its
standard input.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from redis import Redis

from jobs.bulk.bulk import Bulk, Progress, predict
from shared.settings import Settings
from shared.wire.client import connect


def main() -> None:
    """Run jobs until standard input ends."""
    redis_url, model, rows, output = sys.argv[1:]
    settings, job = (
        Settings.from_env(os.environ),
        Bulk(model, Path(rows), Path(output), restart=True),
    )
    os.nice(settings.job_nice)
    with connect(redis_url) as client:
        _rows_per_second(job, client, settings)
        print("ready", flush=True)
        for _ in sys.stdin:
            print(_rows_per_second(job, client, settings), flush=True)


def _rows_per_second(job: Bulk, client: Redis, settings: Settings) -> float:
    began, told = time.monotonic(), list[Progress]()
    done = predict(job, client, settings, told.append)
    assert done.errors == 0, "the scenario's own body is a good one"
    return done.done / (time.monotonic() - began)


if __name__ == "__main__":
    main()
