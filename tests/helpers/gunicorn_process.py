"""A real gunicorn with our own configuration, for what Flask's test client cannot show."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path

from conftest import environment
from waiting import wait_until

from shared.settings import Settings

ROOT = Path(__file__).resolve().parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def running_gunicorn(
    settings: Settings, log_file: Path | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Serve the API on the settings' port until the block ends; its log goes to `log_file`."""
    command = [sys.executable, "-m", "gunicorn", "--config", "gunicorn.conf.py", "api.wsgi:app"]
    environ = os.environ | environment(settings)
    with open(log_file or os.devnull, "ab") as log:
        output = log if log_file else None
        process = subprocess.Popen(command, env=environ, cwd=ROOT, stdout=output, stderr=output)
    try:
        wait_until(lambda: _answers(settings.port), 30, "gunicorn answers")
        yield process
    finally:
        process.terminate()
        process.wait(timeout=60)


def _answers(port: int) -> bool:
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", "/v2/health/live")
        return connection.getresponse().status == 200
    except ConnectionRefusedError:
        return False
    finally:
        connection.close()
