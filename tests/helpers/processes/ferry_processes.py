"""A real worker, and a real gunicorn for what Flask's test client cannot show."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPConnection
from pathlib import Path

from forks import FORKS, Forked
from waiting import wait_until

from shared.registry.registry import Registry
from shared.settings import Settings
from shared.wire.client import connect

ROOT = Path(__file__).resolve().parents[3]
SAMPLES = ["digits", "sentiment", "resnet18", "tiny"]
"""The sample models that the session's worker serves."""


@contextmanager
def running_worker(
    settings: Settings,
    *,
    wait_ready: bool = True,
    log_file: Path | None = None,
    forked: bool = True,
    root: Path = ROOT,
) -> Iterator[Forked | subprocess.Popen[bytes]]:
    """Run `python -m worker` with `settings` until the block ends; SIGTERM ends it.

    Waits until every model of the repository is ready. The test fails if it does not stop. Its log
    goes to `log_file`, or to the test's own standard error. It is `forked` from a process that has
    torch, where how it starts is not the subject, and `root` is where our code is.
    """
    environ = os.environ | environment(settings)
    if forked and root == ROOT:
        process = FORKS.start(["worker"], environ, ROOT, None, None, log_file)
    else:
        process = _spawned(environ, log_file, root)
    registry = Registry(connect(settings.redis_url, settings.key_prefix), settings.key_prefix)
    try:
        if wait_ready:
            wait_until(lambda: registry.snapshot().all_ready(), 60, "all models ready")
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)


def _spawned(environ: dict[str, str], log_file: Path | None, root: Path) -> subprocess.Popen[bytes]:
    with open(log_file or os.devnull, "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "worker"],
            env=environ,
            cwd=root,
            stderr=log if log_file else None,
        )


def environment(settings: Settings) -> dict[str, str]:
    """Return the variables that `Settings.from_env` reads `settings` from."""
    return {
        field.metadata["variable"]: str(getattr(settings, name))
        for name, field in Settings.__dataclass_fields__.items()
        if getattr(settings, name) != field.default
    }


def free_port() -> int:
    """Return a port that nobody has, below those that the kernel gives to outgoing connections."""
    while True:
        port = random.SystemRandom().randrange(10_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


@contextmanager
def running_gunicorn(
    settings: Settings, log_file: Path | None = None, root: Path = ROOT
) -> Iterator[subprocess.Popen[bytes]]:
    """Serve the API on the settings' port until the block ends; its log goes to `log_file`.

    Its code is that in `root`.
    """
    command = [sys.executable, "-m", "gunicorn", "--config", "gunicorn.conf.py", "api.wsgi:app"]
    environ = os.environ | environment(settings)
    with open(log_file or os.devnull, "ab") as log:
        output = log if log_file else None
        process = subprocess.Popen(command, env=environ, cwd=root, stdout=output, stderr=output)
    try:
        wait_until(lambda: _answers(settings.port), 90, "gunicorn answers")
        yield process
    finally:
        process.terminate()
        process.wait(timeout=60)


def _answers(port: int) -> bool:
    connection = HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", "/v2/health/live")
        return connection.getresponse().status == 200
    except (ConnectionRefusedError, TimeoutError):  # nobody listens, or its workers still import
        return False
    finally:
        connection.close()
