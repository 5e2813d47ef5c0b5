"""`ferry up`: an embedded Valkey when needed, the Procfile's processes, and an orderly end."""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from itertools import combinations
from pathlib import Path
from types import FrameType

from redis.exceptions import RedisError

from ferry.errors import CannotStart
from ferry.up import embedded_valkey
from ferry.up.embedded_valkey import EmbeddedValkey
from ferry.up.listening import try_to_listen
from ferry.up.processes import OrderedManager, read_procfile, stop_signals
from ferry.up.readiness import Announcer
from ferry.up.reaper import Reaper
from shared.access.addresses import is_loopback
from shared.errors import BadSetting
from shared.settings import Settings, mention_service_links, service_links
from shared.socket_paths import no_semaphores
from shared.wire.client import connect, public_url

log = logging.getLogger(__name__)

PROJECT_ROOT = Path(__file__).resolve().parents[2]
# From the beginning of the stop to Valkey's end; see ferry.up.processes for who stops before.
STOP_SECONDS = 8.5
# As long as a predecessor's reaper may take; a second `ferry up` is told after this.
LOCK_TIMEOUT_SECONDS = 2.0
JOB_PROCESSES = frozenset({"jobs", "dashboard"})
"""Those that FERRY_JOBS=0 leaves out."""


def up(
    environ: Mapping[str, str],
    procfile: Path = PROJECT_ROOT / "Procfile",
    shown: Sequence[str] = (),
) -> int:
    """Run everything until a signal or a death; return 0 after a signal, 1 after a death.

    Of the models named in `shown` a request to try is printed when they are ready.

    Raises BadSetting and CannotStart before anything runs. Whatever happens after that, kill -9
    included, no process and no socket is left behind.
    """
    settings = _absolute(Settings.from_env(environ))
    mention_service_links(service_links(environ), log)
    processes = read_procfile(procfile)
    if not settings.jobs:
        processes = {name: line for name, line in processes.items() if name not in JOB_PROCESSES}
    _check_surroundings(settings)
    for number in stop_signals():
        signal.signal(number, _interrupt)  # until the manager has handlers of its own
    with _reaper(Path(settings.state_dir)) as reaper:
        valkey = None if settings.redis_url else _start_valkey(Path(settings.state_dir), reaper)
        if valkey is None:
            return _run(
                settings, environ, processes, OrderedManager(reaper, [_ready(settings, shown)])
            )
        settings = replace(settings, redis_url=valkey.url)
        manager = OrderedManager(reaper, [_ready(settings, shown), _death_of(valkey)])
        try:
            _check_protected(settings)
            return _run(settings, environ, processes, manager)
        finally:
            _stop_valkey(valkey, manager)


def child_environment(settings: Settings, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of the processes: `environ`, with every setting spelled out.

    Links to Services are left out: who starts the processes has mentioned them.
    """
    links = service_links(environ)
    given = {name: value for name, value in environ.items() if name not in links}
    spelled_out = {
        setting.metadata["variable"]: str(getattr(settings, setting.name))
        for setting in fields(settings)
    }
    path = f"{Path(sys.executable).parent}{os.pathsep}{environ.get('PATH', os.defpath)}"
    return {**given, **spelled_out, "PATH": path, "PYTHONUNBUFFERED": "1"}


def _absolute(settings: Settings) -> Settings:
    # The processes run in the project's directory, the user's paths are relative to the user's.
    # subtle: a link is kept, for it may lead elsewhere later (as git-sync's does).
    models, state = Path(settings.models).absolute(), Path(settings.state_dir).resolve()
    keys, inputs, outputs, files = (
        given and str(Path(given).absolute())
        for given in (
            settings.keys_file, settings.job_inputs, settings.job_outputs, settings.job_files,
        )
    )  # fmt: skip
    return replace(
        settings, models=str(models), state_dir=str(state), keys_file=keys, job_inputs=inputs,
        job_outputs=outputs, job_files=files,
    )  # fmt: skip


def _check_surroundings(settings: Settings) -> None:
    if Path(settings.models).is_file():
        raise BadSetting(
            f"FERRY_MODELS={settings.models!r}: a file, not a directory of models; "
            f"`ferry serve {settings.models}` serves it"
        )
    if not Path(settings.models).is_dir():
        raise BadSetting(
            f"FERRY_MODELS={settings.models!r}: no such directory; "
            "`ferry samples` makes one with sample models in it"
        )
    check_free(settings)


def check_free(settings: Settings) -> None:
    """Raise CannotStart when a port is taken, or the Redis that is named does not answer."""
    if fault := no_semaphores():
        raise CannotStart(fault)
    ports = {
        "FERRY_PORT": (settings.host, settings.port),
        "FERRY_GRPC_PORT": (settings.host, settings.grpc_port),
        "FERRY_DASHBOARD_PORT": ("127.0.0.1", settings.dashboard_port),
    }
    for variable, (host, port) in ports.items():
        _check_port(variable, host, port)
    for first, second in combinations(ports, 2):
        if ports[first][1] == ports[second][1]:
            raise BadSetting(f"{first} and {second} are both {ports[first][1]}: set one to another")
    if settings.redis_url:
        from shared.wire.server_check import check_server  # noqa: PLC0415  it brings numpy

        check_server(settings)
        _check_redis(settings)
        _check_protected(settings)


def _check_protected(settings: Settings) -> None:
    """Raise BadSetting where others than this machine could ask without a key."""
    if settings.keys_file or (not settings.insecure and not is_loopback(settings.host)):
        from shared.access.protected import check_protected  # noqa: PLC0415  it brings pydantic

        check_protected(settings)


def _check_port(variable: str, host: str, port: int) -> None:
    try:
        try_to_listen(host, port)
    except socket.gaierror as error:
        raise BadSetting(
            f"FERRY_HOST={host!r}: no address of this machine: {error.strerror}"
        ) from error
    except OSError as error:
        raise CannotStart(
            f"{variable}={port}: cannot listen on {host}: {error.strerror}; "
            "set it to another port, or stop what listens there"
        ) from error


def _check_redis(settings: Settings) -> None:
    client = connect(settings.redis_url, settings.key_prefix)
    try:
        client.ping()
    except RedisError as error:
        raise CannotStart(
            f"REDIS_URL={public_url(settings.redis_url)}: {error}; "
            "start it, or unset REDIS_URL to have one embedded"
        ) from error
    finally:
        client.close()


@contextmanager
def _reaper(directory: Path) -> Iterator[Reaper]:
    lock = _lock(directory)
    reaper = Reaper(lock)
    try:
        yield reaper
    finally:
        reaper.finish()
        os.close(lock)


def _lock(directory: Path) -> int:
    """Make `directory` (mode 700) and lock it; return the descriptor that holds the lock.

    The lock goes when the last process that inherited the descriptor ends, so it cannot go stale.
    Raises CannotStart when another `ferry up` has it, or the directory cannot be written.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise CannotStart(
            f"FERRY_STATE_DIR={directory}: {error.strerror}; set it to a directory that can be "
            "written"
        ) from error
    deadline = time.monotonic() + LOCK_TIMEOUT_SECONDS
    while not _try_lock(descriptor):
        if time.monotonic() > deadline:
            holder = os.read(descriptor, 32).decode(errors="replace").strip()
            os.close(descriptor)
            raise CannotStart(
                f"another ferry up (process {holder}) runs in {directory}; "
                "stop it, or set FERRY_STATE_DIR to another directory"
            )
        time.sleep(0.05)
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"{os.getpid()}\n".encode())
    return descriptor


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _start_valkey(directory: Path, reaper: Reaper) -> EmbeddedValkey:
    path = embedded_valkey.socket_path(directory)
    reaper.watch_path(path if path.parent == directory else path.parent)
    valkey = embedded_valkey.spawn(directory, path, reaper.start)
    try:
        embedded_valkey.wait_until_answers(valkey)
    except BaseException:
        valkey.stop()
        raise
    return valkey


def _stop_valkey(valkey: EmbeddedValkey, manager: OrderedManager) -> None:
    spent_seconds = time.monotonic() - manager.stop_began if manager.stop_began else 0.0
    valkey.stop(max(STOP_SECONDS - spent_seconds, 0.5), hurry=lambda: manager.hurry)


def _run(
    settings: Settings,
    environ: Mapping[str, str],
    processes: Mapping[str, str],
    manager: OrderedManager,
) -> int:
    manager.add_all(processes, child_environment(settings, environ), PROJECT_ROOT)
    manager.loop()
    return 1 if manager.failed else 0


def _ready(settings: Settings, shown: Sequence[str]) -> Callable[[OrderedManager], None]:
    start = time.monotonic()
    return lambda manager: Announcer(settings, manager, start, shown).run()


def _death_of(valkey: EmbeddedValkey) -> Callable[[OrderedManager], None]:
    def watch(manager: OrderedManager) -> None:
        code = valkey.process.wait()
        manager.stop(f"Valkey ended (exit code {code}), see {valkey.log_file}", failed=True)

    return watch


def _interrupt(number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt(signal.Signals(number).name)
