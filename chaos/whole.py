"""A whole `ferry up` to be stopped and started again, as an operator does it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from bench.processes import free_port, running
from bench.servers import wait_until_ready
from bench.single_requests import Request
from chaos.system import STOP_TIMEOUT_SECONDS, repository_of
from ferry.up.up import child_environment
from shared.settings import Settings


class WholeSystem:
    """One `ferry up` after the other, on the same port and state directory."""

    def __init__(self, settings: Settings, directory: Path, processes: ExitStack) -> None:
        """Start the first one, and wait until it is ready; the last ends with `processes`."""
        self.settings = settings
        self.directory = directory
        self._processes = processes
        self._process: subprocess.Popen[bytes]
        self.start()

    @property
    def pid(self) -> int:
        """Return the id of the process that all others come from."""
        return self._process.pid

    def start(self) -> None:
        """Start everything, and return when the model is served."""
        log_file = self.directory / "up.log"
        environ = child_environment(self.settings, os.environ)
        command = [sys.executable, "-m", "ferry", "up"]
        self._process = self._processes.enter_context(running(command, environ, log_file))
        ready = Request(self.settings.port, "/v2/health/ready")
        wait_until_ready(ready, [(self._process, log_file)])

    def stop(self) -> float:
        """Stop everything with SIGTERM; return how many seconds that took."""
        began = time.monotonic()
        self._process.terminate()
        self._process.wait(STOP_TIMEOUT_SECONDS)
        return time.monotonic() - began


@contextmanager
def running_whole(
    settings: Settings, model: str, instances: int, directory: Path
) -> Iterator[WholeSystem]:
    """Serve one model of `settings.models` by `ferry up`, which embeds its Valkey.

    Everything is in `directory` and ends with the block. Raises BenchError.
    """
    settings = replace(
        settings,
        host="127.0.0.1",
        port=free_port(),
        grpc_port=free_port(),
        dashboard_port=free_port(),
        redis_url="",
        state_dir=str(directory / "state"),
        models=str(repository_of(Path(settings.models), model, instances, directory)),
    )
    with ExitStack() as stack:
        yield WholeSystem(settings, directory, stack)
