"""A version serves with the instances that it has, and says which it lacks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import pytest
from fake_backend import fake_spec
from ferry_processes import ROOT, environment, running_worker
from formats_repository import TENSORS
from waiting import wait_until
from worker_processes import Served, numbers, seen

from shared.registry.repository_index import repository_index
from shared.settings import Settings
from worker.supervisor.deployment import Deployment

INSTANCES, LICENCES = 4, 3
MODEL = f"""
import fcntl


class Model:
    def load(self, context):
        for number in range({LICENCES}):
            self.licence = open(context.directory / f"licence-{{number}}", "w")
            try:
                fcntl.flock(self.licence, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                continue
            return
        raise RuntimeError("all licences are taken")

    def forward(self, inputs):
        return {{"y": inputs["x"] * 2}}
"""


class Slot(NamedTuple):
    """One instance's place, as a deployment sees it."""

    state: str
    had_chance: bool = True
    reason: str = ""


READY, BAD = Slot("ready"), Slot("failed", reason="CUDA error")
STARTING, AGAIN = Slot("starting", had_chance=False), Slot("starting", reason="CUDA error")


@pytest.mark.parametrize(
    ("slots", "share", "state"),
    [
        ([READY] * 8, 1.0, "ready"),
        ([READY] * 7 + [BAD], 0.0, "ready"),
        ([READY] * 7 + [AGAIN], 0.0, "ready"),
        ([READY] + [BAD] * 7, 0.0, "ready"),
        ([READY] * 7 + [STARTING], 0.0, "loading"),
        ([READY] * 6 + [BAD, STARTING], 0.0, "loading"),
        ([BAD] * 8, 0.0, "failed"),
        ([READY] * 7 + [BAD], 1.0, "failed"),
        ([READY] * 7 + [BAD], 0.8, "ready"),
        ([READY] * 6 + [BAD] * 2, 0.8, "failed"),
    ],
)
def test_a_version_is_ready_once_enough_of_its_instances_are_and_all_had_their_chance(
    slots: list[Slot], share: float, state: str
) -> None:
    model = SimpleNamespace(spec=fake_spec())

    report = Deployment(cast(Any, model), cast(Any, slots), share).report

    assert report.state == state
    assert report.reason == ("CUDA error" if state == "failed" else "")


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository = tmp_path_factory.mktemp("licensed")
    add_version(repository, "1")
    (repository / "licensed" / "config.pbtxt").write_text(
        f'backend: "python"\nmax_batch_size: 8\n{TENSORS}'
        f"instance_group [ {{ count: {INSTANCES} kind: KIND_CPU }} ]\n"
    )
    return repository


def add_version(repository: Path, version: str) -> None:
    """Write a version of which one instance too many is wanted."""
    made = repository / "licensed" / f"made-{version}"
    made.mkdir(parents=True)
    (made / "model.py").write_text(MODEL)
    made.rename(repository / "licensed" / version)


@pytest.fixture(scope="module")
def settings(redis_url: str, repository: Path) -> Settings:
    return Settings(
        redis_url=redis_url, key_prefix="licensed", models=str(repository),
        model_control_mode="poll", poll_seconds=0.2,
    )  # fmt: skip


@pytest.fixture(scope="module")
def licensed(settings: Settings) -> Iterator[Served]:
    with running_worker(settings), seen(settings, "licensed") as served:
        yield served


def listed(settings: Settings) -> list[dict[str, Any]]:
    """Return what `ferry models list` says."""
    command = [sys.executable, "-m", "ferry", "models", "list", "--json"]
    environ = os.environ | environment(settings)
    found = subprocess.run(command, env=environ, cwd=ROOT, capture_output=True, check=True)
    rows: list[dict[str, Any]] = json.loads(found.stdout)
    return rows


def test_a_version_that_lacks_an_instance_serves_and_says_so(
    licensed: Served, settings: Settings
) -> None:
    said = f"degraded: {LICENCES} of {INSTANCES} instances: "
    snapshot = licensed.registry.snapshot()
    (entry,) = repository_index(snapshot)

    assert snapshot.all_ready()
    assert entry["state"] == "READY"
    assert entry["reason"].startswith(said)
    assert "all licences are taken" in entry["reason"]
    assert numbers(licensed.push(1.0).wait()).tolist() == [[2.0, 2.0]]
    (row,) = listed(settings)
    assert (row["state"], row["instance_count"]) == ("READY", LICENCES)
    assert row["reason"].startswith(said)


def test_so_does_the_version_that_takes_over(licensed: Served, repository: Path) -> None:
    add_version(repository, "2")

    def serving() -> str:
        return licensed.registry.snapshot().served["licensed"].default

    wait_until(lambda: serving() == "2", 60, "the new version takes over")

    def is_degraded() -> bool:
        return any(key.startswith("licensed/2") for key in licensed.registry.snapshot().degraded)

    # For a moment the record of an instance that failed is taken out to be written anew.
    wait_until(is_degraded, 30, "the new version is degraded")
