"""Two workers with a repository each, as on two machines: both follow what is desired."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import running_worker
from versioned_models import add_broken, add_model, add_version
from waiting import wait_until

from shared.errors import LoadFailed
from shared.operations.model_control import ModelControl
from shared.registry.desired_store import DesiredStore
from shared.registry.registry import Registry
from shared.settings import Settings
from shared.wire.client import connect


class Cluster:
    """Two machines that serve version 1 of `m`, and what is known of them."""

    def __init__(self, settings: Settings, repositories: list[Path]) -> None:
        self.repositories = repositories
        self.redis = connect(settings.redis_url)
        self.store = DesiredStore(self.redis, settings.key_prefix)
        self.control = ModelControl(self.redis, settings.key_prefix)
        self.registry = Registry(self.redis, settings.key_prefix)
        self.workers: list[subprocess.Popen[bytes]] = []

    def ready(self, version: str) -> int:
        """Count the ready instances of a version."""
        records, alive = self.registry.instances()
        return sum(
            record.version == version and record.state == "ready" and record.supervisor in alive
            for record in records
        )

    @property
    def default(self) -> str:
        return self.store.read().served["m"].default


@pytest.fixture
def cluster(settings: Settings, tmp_path: Path) -> Iterator[Cluster]:
    repositories = [tmp_path / "a", tmp_path / "b"]
    for repository in repositories:
        add_model(repository, "m", 1)
    settings = replace(
        settings, model_control_mode="explicit", load_models="*", heartbeat_seconds=0.5
    )
    found = Cluster(settings, repositories)
    first, second = (replace(settings, models=str(each)) for each in repositories)
    with running_worker(first) as a, running_worker(second) as b:
        found.workers = [a, b]
        wait_until(lambda: found.ready("1") == 2, 30, "both machines serve version 1")
        yield found
    found.redis.close()


def test_load_answers_when_the_model_is_ready_on_every_machine(cluster: Cluster) -> None:
    for repository in cluster.repositories:
        add_version(repository, "m", 2)

    cluster.control.load("m")

    assert cluster.ready("2") == 2
    assert cluster.default == "2"


def test_a_version_that_one_machine_cannot_load_takes_no_request(cluster: Cluster) -> None:
    add_version(cluster.repositories[0], "m", 2)
    add_broken(cluster.repositories[1], "m", 2)

    with pytest.raises(LoadFailed, match=r"b/m/2/model\.onnx"):
        cluster.control.load("m")

    assert cluster.default == "1"
    assert cluster.ready("1") == 2


def test_a_version_that_machines_have_different_files_for_takes_no_request(
    cluster: Cluster,
) -> None:
    add_version(cluster.repositories[0], "m", 2)
    add_version(cluster.repositories[1], "m", 2, factor=3.0)

    with pytest.raises(LoadFailed, match="version 2 of 'm' has other files on other machines"):
        cluster.control.load("m")

    assert cluster.default == "1"


def test_machines_that_have_the_same_content_share_a_queue(cluster: Cluster) -> None:
    records, _ = cluster.registry.instances()

    assert {record.model_key for record in records} == {"m/1"}


def test_a_machine_that_is_gone_hinders_nobody(cluster: Cluster) -> None:
    gone = cluster.workers[1]
    gone.send_signal(signal.SIGKILL)
    gone.wait()
    add_version(cluster.repositories[0], "m", 2)

    cluster.control.load("m")

    assert cluster.default == "2"
    assert cluster.ready("2") == 1


def test_a_model_that_one_machine_alone_has_is_served_by_it(cluster: Cluster) -> None:
    add_model(cluster.repositories[0], "other", 1)

    cluster.control.load("other")

    assert cluster.store.read().served["other"].default == "1"
    cluster.control.unload("other")
    assert "other" not in cluster.store.read().served


def test_a_redis_that_forgot_everything_is_told_where_requests_go(cluster: Cluster) -> None:
    for repository in cluster.repositories:
        add_version(repository, "m", 2)
    cluster.control.load("m")
    cluster.control.use("m", "1")

    prefix = cluster.store._prefix
    cluster.redis.delete(*cluster.redis.keys(f"{prefix}:*"))

    wait_until(
        lambda: (served := cluster.store.read().served.get("m")) and served.default == "1",
        20,
        "version 1 is used again",
    )
    assert cluster.store.read().desired["m"].use == "1"
