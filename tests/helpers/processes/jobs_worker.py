"""A real jobs worker, `python -m jobs`, that can be killed."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from ferry_processes import ROOT, environment

from shared.settings import Settings


def start_jobs_worker(
    settings: Settings, *, largest_file: int | None = None
) -> subprocess.Popen[bytes]:
    """Start one; no file that it writes may grow beyond `largest_file` bytes, as on a full disk."""
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs"], env=os.environ | environment(settings), cwd=ROOT
    )
    if largest_file is not None:
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (largest_file, largest_file))
    return process


@contextmanager
def running_jobs_worker(settings: Settings) -> Iterator[subprocess.Popen[bytes]]:
    """Run one until the block ends; SIGTERM ends it. The test fails if it does not."""
    process = start_jobs_worker(settings)
    try:
        yield process
    finally:
        process.terminate()
        assert process.wait(timeout=60) in {0, -signal.SIGTERM}  # the latter while it starts
