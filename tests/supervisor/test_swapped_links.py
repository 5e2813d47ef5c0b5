"""A repository behind a link that is swapped, as git-sync and ConfigMaps do, is followed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ferry_processes import running_worker
from versioned_models import add_model, add_version
from waiting import wait_until

from api.app import create_app
from api.infer.question import Question
from shared.messages import Tensor
from shared.operations.model_control import ModelControl
from shared.settings import Settings
from shared.wire.client import connect

X = Tensor.of("x", np.array([[1, 10]], np.float32))


class Repository:
    """`current`, a link to one revision of a model `m` at a time."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.path = directory / "current"

    def write(self, revision: str, factor: float) -> None:
        """Write a revision whose version 1 answers `factor` times what it is given."""
        add_model(self._directory / revision, "m")
        add_version(self._directory / revision, "m", 1, factor)

    def swap(self, revision: str) -> None:
        """Lead to a revision in one step, and remove the one before."""
        before = self.path.readlink() if self.path.is_symlink() else None
        (self._directory / "next").symlink_to(revision)
        os.replace(self._directory / "next", self.path)
        if before is not None:
            shutil.rmtree(self._directory / before)


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    repository = Repository(tmp_path)
    repository.write("rev1", 3.0)
    repository.swap("rev1")
    return repository


@pytest.fixture(params=["explicit", "poll"])
def serving(
    settings: Settings, repository: Repository, request: pytest.FixtureRequest
) -> Iterator[Settings]:
    """A worker over the link, in a mode that follows changes."""
    serving = replace(
        settings, models=str(repository.path), model_control_mode=request.param,
        poll_seconds=0.1, load_models="*" if request.param == "explicit" else "",
    )  # fmt: skip
    with running_worker(serving):
        yield serving


def test_a_swapped_link_brings_its_new_models(serving: Settings, repository: Repository) -> None:
    services = create_app(serving).extensions["ferry"]

    def ask() -> float:
        asked = services.queues.ask(Question(services.catalog.serving("m"), (X,)))
        return float(asked.result.outputs[0].array()[0, 0])

    def answer() -> float:
        services.catalog.refresh()
        return services.catalog.by_current(ask)  # as the API does: versions retire meanwhile

    assert answer() == 3.0
    repository.write("rev2", 5.0)
    repository.swap("rev2")
    if serving.model_control_mode == "explicit":
        assert answer() == 3.0, "what was loaded serves on, its files are gone"
        with connect(serving.redis_url) as redis:
            ModelControl(redis, serving.key_prefix).load("m")
        assert answer() == 5.0
    wait_until(lambda: answer() == 5.0, 30, "the new revision serves")
