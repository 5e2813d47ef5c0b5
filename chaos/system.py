"""A whole Ferry to be hit: its Valkey, its supervisors, its API."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from bench.processes import BenchError, free_port, last_lines, running
from bench.servers import gunicorn, wait_until_ready
from bench.single_requests import Request
from chaos.questions import FIRST_VERSION
from chaos.reference import add_version
from chaos.valkey import OF_STORES, MortalValkey, mortal_valkey
from ferry.up.sessions import members, send
from ferry.up.up import child_environment
from shared.bodies.common_memory import SHARED_MEMORY_ROOT
from shared.bodies.keys import BodyKeys
from shared.errors import RedisUnavailable
from shared.operations.model_control import ModelControl
from shared.registry.registry import Registry
from shared.registry.snapshot import InstanceRecord
from shared.request_queue.keys import QueueKeys
from shared.settings import Settings
from shared.wire.client import connect

READY_TIMEOUT_SECONDS = 60.0
CLEARED_SECONDS = 45.0
"""An answer in a store that nobody reads lives for half a minute."""
STOP_TIMEOUT_SECONDS = 45.0
"""gunicorn lets requests finish until their deadline, 30 seconds."""

Worker = subprocess.Popen[bytes]


class System:
    """One model served under `settings`; processes can be started and signalled."""

    def __init__(
        self,
        settings: Settings,
        model: str,
        valkey: MortalValkey,
        directory: Path,
        processes: ExitStack,
    ) -> None:
        """Start nothing but what is there already, Valkey; the rest ends with `processes`."""
        self.settings = settings
        self.model = model
        self.valkey = valkey
        self.workers: list[Worker] = []
        self.stores: list[MortalValkey] = []
        self._folders = set[str]()
        self.version = int(FIRST_VERSION)
        self.directory = directory
        self._processes = processes
        self._environ = child_environment(settings, os.environ)
        self._redis = connect(settings.redis_url)
        self._registry = Registry(self._redis, settings.key_prefix)
        self._control = ModelControl(self._redis, settings.key_prefix)
        self._is_ready = Request(settings.port, "/v2/health/ready")

    def start_worker(self) -> Worker:
        """Start one more supervisor; it leads a session that holds all its children."""
        command = [sys.executable, "-m", "worker"]
        log_file = self.directory / "worker.log"
        worker = self._processes.enter_context(running(command, self._environ, log_file))
        self.workers.append(worker)
        return worker

    def start_jobs_worker(self) -> Worker:
        """Start the jobs worker, which reads and writes where everything is."""
        command = [sys.executable, "-m", "jobs"]
        log_file = self.directory / "jobs.log"
        return self._processes.enter_context(running(command, self._environ, log_file))

    def start_api(self) -> None:
        """Start gunicorn, and wait until it answers and says that the model is served."""
        pid_file, log_file = self.directory / "api.pid", self.api_log
        command = gunicorn("api.wsgi:app", "--pid", str(pid_file))
        api = self._processes.enter_context(running(command, self._environ, log_file))
        self._api_session = self._api_master = api.pid
        wait_until_ready(self._is_ready, [(api, log_file)])

    @property
    def api_log(self) -> Path:
        """Where gunicorn logs to."""
        return self.directory / "api.log"

    def records(self, worker: Worker | None = None) -> list[InstanceRecord]:
        """Return the registered instances, of one supervisor or of all; none without Redis."""
        try:
            records = self._registry.instances()[0]
        except RedisUnavailable:
            return []
        sign = f"-{worker.pid}-" if worker else ""
        return [record for record in records if sign in record.supervisor]

    def ready(self, worker: Worker | None = None) -> list[InstanceRecord]:
        """Return the instances that take requests."""
        return [record for record in self.records(worker) if record.state == "ready"]

    def ask(self, value: float) -> tuple[int, dict[str, Any]]:
        """Ask `tiny` for a row full of `value`s; return the status and the answer's body."""
        connection = HTTPConnection("127.0.0.1", self.settings.port, timeout=READY_TIMEOUT_SECONDS)
        tensor = {"name": "INPUT__0", "shape": [1, 16], "datatype": "FP32", "data": [value] * 16}
        with closing(connection):
            body = json.dumps({"inputs": [tensor]})
            connection.request("POST", f"/v2/models/{self.model}/infer", body)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())

    def holds_work(self, record: InstanceRecord) -> bool:
        """Tell whether an instance has claimed requests and not published their answers."""
        keys = QueueKeys(self.settings.key_prefix, record.model_key)
        return bool(self._redis.exists(*keys.held_by(record.id)))

    def note_folders(self) -> None:
        """Note the API processes whose folders in shared memory are not to be left behind."""
        answered = QueueKeys(self.settings.key_prefix, f"{self.model}/{FIRST_VERSION}").answered
        for channel in self._redis.pubsub_channels(f"{answered}*"):
            assert isinstance(channel, bytes), "that is how Ferry has replies"
            self._folders.add(channel.decode().removeprefix(answered))

    def wait_cleared(self) -> None:
        """Return once nothing is left of requests, in shared memory and in stores."""
        folder = SHARED_MEMORY_ROOT / f"ferry-{os.getuid()}"
        body_keys = BodyKeys(self.settings.key_prefix)

        def left() -> list[object]:
            found: list[object] = [
                file for each in self._folders for file in (folder / each).glob("*")
            ]
            for store in self.stores:
                with connect(store.url) as client:
                    found += client.scan_iter(f"{body_keys.beside}*", count=1000)
            return found

        wait_until(lambda: not left(), CLEARED_SECONDS, "nothing is left beside Redis")

    def versions(self) -> list[int]:
        """Return the versions in the repository, the highest last."""
        names = [path.name for path in self._model_directory.iterdir()]
        return sorted(int(name) for name in names if name.isdecimal())

    def add_version(self) -> int:
        """Put a version above all others into the repository, and return it."""
        version = self.versions()[-1] + 1
        add_version(self._model_directory, version)
        return version

    def use(self, version: int) -> None:
        """Send requests to a version, as `ferry models use` does."""
        self._control.use(self.model, str(version))
        self.version = version

    @property
    def _model_directory(self) -> Path:
        return Path(self.settings.models) / self.model

    def wait_ready(self, count: int, worker: Worker | None = None) -> None:
        """Return once `count` instances, of one supervisor or of all, take requests."""
        what = f"{count} ready instances of {self.model}"
        log_file = self.directory / "worker.log"
        wait_until(lambda: len(self.ready(worker)) >= count, READY_TIMEOUT_SECONDS, what, log_file)

    def wait_serving(self, count: int) -> None:
        """Return once the registry also knows the model, which a Redis that lost it does not."""

        def serving() -> bool:
            try:
                return self._registry.snapshot().all_ready() and len(self.ready()) >= count
            except RedisUnavailable:
                return False

        wait_until(serving, READY_TIMEOUT_SECONDS, f"{self.model} is served")

    def api_processes(self) -> set[int]:
        """Return gunicorn's processes but its present master."""
        return {*members(self._api_session)} - {self._api_master}

    def reload_api(self) -> None:
        """Have gunicorn replace its processes (SIGHUP), and wait until the new ones answer.

        Until they do, requests wait in the listening socket, sent long before what happens next.
        """
        before = self.api_processes()
        send(self._api_master, signal.SIGHUP)
        wait_until(
            lambda: not before & self.api_processes(),
            STOP_TIMEOUT_SECONDS,
            "a reload",
            self.api_log,
        )
        wait_until_ready(self._is_ready, [])

    def replace_api(self) -> float:
        """Start a new master beside the old one, then stop the old one with SIGTERM.

        The new one inherits the listening socket (SIGUSR2), so no connection is ever refused.
        Returns how long the old one took to end. Source: "Upgrading to a new binary on the fly",
        https://gunicorn.org/signals/.
        """
        old, pid_file = self._api_master, self.directory / "api.pid"
        new_pid_file = self.directory / "api.pid.2"
        send(old, signal.SIGUSR2)
        wait_until(lambda: _read(new_pid_file), READY_TIMEOUT_SECONDS, "a new master", self.api_log)
        self._api_master = int(_read(new_pid_file))
        began = time.monotonic()
        send(old, signal.SIGTERM)
        wait_until(
            lambda: old not in members(self._api_session), STOP_TIMEOUT_SECONDS,
            "the old master's end", self.api_log,
        )  # fmt: skip
        seconds = time.monotonic() - began
        wait_until(
            lambda: _read(pid_file) == str(self._api_master), READY_TIMEOUT_SECONDS,
            "the new master has taken over", self.api_log,
        )  # fmt: skip
        return seconds


def wait_until(
    condition: Callable[[], object], seconds: float, what: str, log_file: Path | None = None
) -> None:
    """Return once `condition()` is true; raises BenchError after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            log = f": {last_lines(log_file)}" if log_file else ""
            raise BenchError(f"waited {seconds:.0f} s in vain for {what}{log}")
        time.sleep(0.01)


def _read(file: Path) -> str:
    try:
        return file.read_text().strip()
    except FileNotFoundError:
        return ""


@contextmanager
def running_system(
    settings: Settings, model: str, instances: int, directory: Path, stores: int = 0
) -> Iterator[System]:
    """Serve one model of `settings.models` with so many instances.

    With body `stores` no memory is shared.

    Everything is in `directory` and ends with the block. Raises BenchError.
    """
    with ExitStack() as stack:
        valkey = stack.enter_context(mortal_valkey(directory))
        body_stores = [
            stack.enter_context(mortal_valkey(_made(directory / f"store{number}"), OF_STORES))
            for number in range(stores)
        ]
        if stores:
            urls = ",".join(each.url for each in body_stores)
            settings = replace(settings, shared_body_bytes=0, body_urls=urls)
        settings = replace(
            settings,
            host="127.0.0.1",
            port=free_port(),
            redis_url=valkey.url,
            models=str(repository_of(Path(settings.models), model, instances, directory)),
            job_inputs=str(directory),
            job_outputs=str(directory),
            job_files=str(directory / "jobs"),
        )
        system = System(settings, model, valkey, directory, stack)
        system.stores = body_stores
        system.start_worker()
        system.wait_ready(instances)
        system.start_api()
        yield system


def _made(directory: Path) -> Path:
    directory.mkdir()
    return directory


def repository_of(models: Path, model: str, instances: int, directory: Path) -> Path:
    """Return a repository with nothing but `model`, in so many instances."""
    copy = directory / "models" / model
    copy.mkdir(parents=True)
    original = (models / model).resolve()
    for path in original.iterdir():
        if path.name != "config.pbtxt":
            (copy / path.name).symlink_to(path)
    group = f"instance_group [ {{ count: {instances} kind: KIND_CPU }} ]\n"
    (copy / "config.pbtxt").write_text((original / "config.pbtxt").read_text() + group)
    return copy.parent
