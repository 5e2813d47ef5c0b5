"""Starts what is measured: a whole Ferry with one model, and the constant route beside it."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from http.client import HTTPConnection
from pathlib import Path
from subprocess import Popen

from bench.children import constant_app
from bench.processes import PROJECT_ROOT, BenchError, free_port, last_lines, running
from bench.single_requests import Request, ask
from ferry.up import embedded_valkey
from ferry.up.up import child_environment
from shared.settings import Settings

READY_TIMEOUT_SECONDS = 120.0


@contextmanager
def whole(model: str, settings: Settings, directory: Path) -> Iterator[Settings]:
    """Run Valkey, a worker that serves only `model`, and the API; yields their settings when ready.

    `settings` gives what may be varied (processes, threads, limits); addresses and directories
    are ours. Raises BenchError with the end of the logs when it does not get ready.
    """
    repository = single_model_repository(model, settings, directory)
    with ExitStack() as stack:
        valkey = stack.enter_context(embedded_valkey.running(directory))
        settings = replace(
            settings, host="127.0.0.1", port=free_port(), redis_url=valkey.url, models=repository
        )
        environ = child_environment(settings, os.environ)
        worker_log, api_log = directory / "worker.log", directory / "api.log"
        worker = running([sys.executable, "-m", "worker"], environ, worker_log)
        started = [(stack.enter_context(worker), worker_log)]
        api = running(gunicorn("api.wsgi:app"), environ, api_log)
        started.append((stack.enter_context(api), api_log))
        wait_until_ready(Request(settings.port, "/v2/health/ready"), started)
        yield settings


@contextmanager
def ferry(model: str, settings: Settings, directory: Path) -> Iterator[int]:
    """Run the same; yields the API's port."""
    with whole(model, settings, directory) as found:
        yield found.port


@contextmanager
def constant(settings: Settings, directory: Path) -> Iterator[Request]:
    """Run the constant route under the same gunicorn settings; yields how to ask it."""
    request = Request(free_port(), constant_app.PATH)
    environ = child_environment(replace(settings, host="127.0.0.1", port=request.port), os.environ)
    log_file = directory / "constant.log"
    with running(gunicorn("bench.children.constant_app:app"), environ, log_file) as process:
        wait_until_ready(request, [(process, log_file)])
        yield request


def single_model_repository(model: str, settings: Settings, directory: Path) -> str:
    """Return a repository with nothing but a link to `model`, so that it gets all the cores."""
    repository = directory / "models"
    repository.mkdir(exist_ok=True)
    link = repository / model
    if not link.exists():
        link.symlink_to(Path(settings.models).resolve() / model)
    return str(repository)


def gunicorn(app: str, *options: str) -> list[str]:
    """Return the command that serves `app` as Ferry's API is served.

    subtle: `python -m gunicorn` could not start itself anew on SIGUSR2, where it finds its own
    package `http` before Python's.
    """
    program, config = Path(sys.executable).parent / "gunicorn", PROJECT_ROOT / "gunicorn.conf.py"
    return [str(program), "--config", str(config), *options, app]


def wait_until_ready(request: Request, processes: list[tuple[Popen[bytes], Path]]) -> None:
    """Return once `request` is answered with a 200; raises BenchError with the logs' ends."""
    deadline = time.monotonic() + READY_TIMEOUT_SECONDS
    while True:
        connection = HTTPConnection("127.0.0.1", request.port, timeout=5.0)
        try:
            ask(connection, request)
            return
        except BenchError as error:
            for process, log_file in processes:
                if process.poll() is not None:
                    raise BenchError(f"{log_file.name}: ended: {last_lines(log_file)}") from error
            if time.monotonic() > deadline:
                logs = "; ".join(f"{log.name}: {last_lines(log)}" for _, log in processes)
                raise BenchError(f"not ready: {error}; {logs}") from error
        finally:
            connection.close()
        time.sleep(0.05)
