"""Two workers with a repository each, as on two machines: both follow what is desired."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from secrets import token_hex

import pytest
from ferry_processes import running_worker
from two_ends import TwoEnds
from versioned_models import add_broken, add_model, add_version
from waiting import wait_until

from shared.errors import LoadFailed
from shared.operations.model_control import ModelControl
from shared.registry.desired_store import DesiredStore
from shared.registry.registry import Registry
from shared.registry.repository_index import repository_index
from shared.registry.snapshot import InstanceRecord
from shared.request_queue.worker_end import WorkQueue
from shared.settings import Settings
from shared.wire.client import connect
from shared.wire.wire import open_wire
from worker.supervisor.recovery import Recovery


class Cluster:
    """Two machines, and what is known of one model that both serve."""

    def __init__(
        self, settings: Settings, repositories: list[Path], workers: list[subprocess.Popen[bytes]]
    ) -> None:
        self.repositories = repositories
        self.workers = workers
        self.model = f"m{token_hex(4)}"
        self.prefix = settings.key_prefix
        self.redis = connect(settings.redis_url)
        self.store = DesiredStore(self.redis, settings.key_prefix)
        self.control = ModelControl(self.redis, settings.key_prefix)
        self.registry = Registry(self.redis, settings.key_prefix)

    def load(self) -> None:
        self.control.load(self.model)

    def add_version(self, machine: int, version: int, factor: float | None = None) -> None:
        add_version(self.repositories[machine], self.model, version, factor)

    def records(self) -> list[InstanceRecord]:
        """Return the ready instances of the model on machines that live."""
        records, alive = self.registry.instances()
        return [
            record
            for record in records
            if record.model == self.model and record.state == "ready" and record.supervisor in alive
        ]

    def ready(self, version: str) -> int:
        """Count the ready instances of a version."""
        return sum(record.version == version for record in self.records())

    @property
    def default(self) -> str:
        return self.store.read().served[self.model].default


@contextmanager
def two_workers(
    settings: Settings, repositories: list[Path]
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Run a worker in mode explicit for each of two repositories, which have one model each."""
    for repository in repositories:
        add_model(repository, "there", 1)
    settings = replace(settings, model_control_mode="explicit", load_models="*")
    first, second = (replace(settings, models=str(each)) for each in repositories)
    log_a, log_b = (each.with_name(f"{each.name}.log") for each in repositories)
    with (
        running_worker(first, wait_ready=False, log_file=log_a) as a,
        running_worker(second, wait_ready=False, log_file=log_b) as b,
        connect(settings.redis_url) as redis,
    ):
        registry = Registry(redis, settings.key_prefix)
        wait_until(lambda: len(registry.instances()[1]) == 2, 60, "both machines are there")
        yield [a, b]


@contextmanager
def serving(
    settings: Settings, repositories: list[Path], workers: list[subprocess.Popen[bytes]]
) -> Iterator[Cluster]:
    """Have both machines serve version 1 of a new model."""
    found = Cluster(settings, repositories, workers)
    for repository in repositories:
        add_model(repository, found.model, 1)
    found.load()
    wait_until(lambda: found.ready("1") == 2, 60, "both machines serve version 1")
    yield found
    found.redis.close()


@pytest.fixture(scope="module")
def lasting(
    redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Settings, list[Path], list[subprocess.Popen[bytes]]]]:
    """Two machines for all tests that leave them as they were."""
    settings = Settings(redis_url=redis_url, key_prefix="two-machines")
    repositories = [tmp_path_factory.mktemp("a"), tmp_path_factory.mktemp("b")]
    with two_workers(settings, repositories) as workers:
        yield settings, repositories, workers


@pytest.fixture
def cluster(
    lasting: tuple[Settings, list[Path], list[subprocess.Popen[bytes]]],
) -> Iterator[Cluster]:
    with serving(*lasting) as found:
        yield found


@pytest.fixture
def mortal(settings: Settings, tmp_path: Path) -> Iterator[Cluster]:
    """Two machines of the test's own, which are missed soon once they are gone."""
    settings = replace(settings, heartbeat_seconds=1.0)
    repositories = [tmp_path / "a", tmp_path / "b"]
    with (
        two_workers(settings, repositories) as workers,
        serving(settings, repositories, workers) as found,
    ):
        yield found


def test_load_answers_when_the_model_is_ready_on_every_machine(cluster: Cluster) -> None:
    for machine in (0, 1):
        cluster.add_version(machine, 2)

    cluster.load()

    assert cluster.ready("2") == 2
    assert cluster.default == "2"


def test_a_version_that_one_machine_cannot_load_takes_no_request(cluster: Cluster) -> None:
    cluster.add_version(0, 2)
    file = add_broken(cluster.repositories[1], cluster.model, 2) / "model.onnx"

    with pytest.raises(LoadFailed, match=re.escape(str(file))):
        cluster.load()

    assert cluster.default == "1"
    assert cluster.ready("1") == 2


def test_a_version_that_machines_have_different_files_for_takes_no_request(
    cluster: Cluster,
) -> None:
    cluster.add_version(0, 2)
    cluster.add_version(1, 2, factor=3.0)

    complaint = f"version 2 of '{cluster.model}' has other files on other machines"
    with pytest.raises(LoadFailed, match=complaint):
        cluster.load()

    assert cluster.default == "1"


def test_different_files_for_a_version_that_serves_are_told_in_the_index_and_the_logs(
    mortal: Cluster, tmp_path: Path
) -> None:
    other = f"{mortal.model}-other"
    add_model(mortal.repositories[0], other, 1)
    mortal.control.load(other)
    add_model(mortal.repositories[1], other)
    add_version(mortal.repositories[1], other, 1, factor=3.0)
    with pytest.raises(LoadFailed, match="has other files on other machines"):
        mortal.control.load(other)

    def index() -> dict[str, str]:
        entries = repository_index(mortal.registry.snapshot())
        return next(each for each in entries if each["name"] == other)

    said = "machines have different files for it: [0-9a-f]{12} on .+ and [0-9a-f]{12} on "
    wait_until(lambda: re.match(said, index()["reason"]), 30, "the index says so")
    assert index()["state"] == "READY"
    assert mortal.store.read().served[other].versions == {"1": f"{other}/1"}
    told = re.compile(f"WARNING .*machines have different files for {other}/1: ")
    logs = [tmp_path / name for name in ("a.log", "b.log")]
    wait_until(lambda: all(told.search(log.read_text()) for log in logs), 30, "both logs say so")
    assert all(len(told.findall(log.read_text())) == 1 for log in logs)

    mortal.workers[0].send_signal(signal.SIGKILL)
    mortal.workers[0].wait()

    wait_until(lambda: served_key(mortal, other) == f"{other}/1@1", 60, "the other one serves")
    wait_until(lambda: not index()["reason"], 30, "there is one content left")


def served_key(cluster: Cluster, name: str) -> str | None:
    found = cluster.store.read().served.get(name)
    return found.versions["1"] if found else None


def test_machines_that_have_the_same_content_share_a_queue(cluster: Cluster) -> None:
    assert [record.model_key for record in cluster.records()] == [f"{cluster.model}/1"] * 2


def test_a_machine_that_is_gone_hinders_nobody(mortal: Cluster) -> None:
    gone = mortal.workers[1]
    gone.send_signal(signal.SIGKILL)
    gone.wait()
    mortal.add_version(0, 2)

    mortal.load()

    assert mortal.default == "2"
    assert mortal.ready("2") == 1


def test_a_model_that_one_machine_alone_has_is_served_by_it(cluster: Cluster) -> None:
    other = f"{cluster.model}-other"
    add_model(cluster.repositories[0], other, 1)

    cluster.control.load(other)

    assert cluster.store.read().served[other].default == "1"
    cluster.control.unload(other)
    assert other not in cluster.store.read().served


def test_a_redis_that_forgot_everything_is_told_where_requests_go(cluster: Cluster) -> None:
    for machine in (0, 1):
        cluster.add_version(machine, 2)
    cluster.load()
    cluster.control.use(cluster.model, "1")

    cluster.redis.delete(*cluster.redis.keys(f"{cluster.prefix}:*"))

    def served() -> bool:
        found = cluster.store.read().served.get(cluster.model)
        return found is not None and found.default == "1"

    wait_until(served, 60, "version 1 is used again")
    assert cluster.store.read().desired[cluster.model].use == "1"


def waits_at(ends: TwoEnds, number: int) -> None:
    clients = ends.redis.client_list
    wait_until(lambda: "b" in clients(client_id=[number])[0]["flags"], 10, "it waits at Redis")


def test_connections_that_still_wait_take_no_request_that_is_put_back(
    settings: Settings, ends: TwoEnds
) -> None:
    names = ["busy", "idle", "also idle"]
    queues = [
        WorkQueue(open_wire(ends.redis), ends.keys, name, result_ttl_seconds=60.0) for name in names
    ]
    ends.push(1)
    assert len(queues[0].claim(8, 0.0)) == 1
    ends.redis.delete(ends.keys.bell)  # it did not wait for it
    for queue in queues[1:]:
        queue._learn_id()
        queue._wire.send(queue._idle_bell, queue._claim(8, 0.0))
        waits_at(ends, queue._client_id)
    records = [
        InstanceRecord(id=name, supervisor="gone", model="m", version="1", state="ready")
        for name in names
    ]

    recovery = Recovery(ends.redis, Registry(ends.redis, settings.key_prefix), settings)
    recovery.take_over(records, {"alive"})

    assert [claimed.attempts for claimed in ends.claim(1)] == [2]
    assert ends.redis.llen(ends.keys.bell) <= 1
    for queue in queues:
        queue._wire.close()
