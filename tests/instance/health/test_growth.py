"""An instance that grew too much says so between two batches, and the next one takes its place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ferry_processes import running_worker
from waiting import wait_until

from api.infer.question import Question
from api.services import Services
from shared.messages import Tensor
from shared.registry.snapshot import InstanceRecord
from shared.settings import Settings
from worker.instance.health import growth
from worker.instance.health.growth import Growth

MIB = 2**20
CODE = """
import numpy

class Model:
    kept = []

    def forward(self, inputs):
        self.kept.append(numpy.ones(min(300, max(0, int(inputs["x"].max()))) * 2**17))
        return {"y": inputs["x"]}
"""
CONFIG = """
name: "hoarder" backend: "python" max_batch_size: 1
input [ { name: "x" data_type: TYPE_FP32 dims: [1] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [1] } ]
"""


@pytest.fixture
def at_every_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "GROWTH_LOOK_SECONDS", 0.0)


@pytest.mark.usefixtures("at_every_look")
def test_what_is_beyond_the_bound_is_a_reason_and_what_returns_is_none() -> None:
    held = [100 * MIB]
    watched = Growth(50 * MIB, lambda: held[0])

    held[0] = 150 * MIB
    assert watched.reason() == ""
    held[0] += 1
    assert "holds 50 MiB more than when it was ready" in watched.reason()
    held[0] = 120 * MIB
    assert watched.reason() == ""
    assert Growth(0, lambda: held.append(0) or held[-2] * 10).reason() == ""


def instances(services: Services) -> list[InstanceRecord]:
    return [each for each in services.registry.instances()[0] if each.state == "ready"]


@pytest.fixture
def services(settings: Settings, tmp_path: Path) -> Iterator[Services]:
    directory = tmp_path / "hoarder"
    (directory / "1").mkdir(parents=True)
    (directory / "1" / "model.py").write_text(CODE)
    (directory / "config.pbtxt").write_text(CONFIG)
    settings = replace(settings, models=str(tmp_path), max_growth_bytes=100 * MIB)
    with running_worker(settings):
        yield Services.of(settings)


def ask(services: Services, mebibytes: int) -> None:
    inputs = (Tensor.of("x", np.full((1, 1), mebibytes, np.float32)),)
    spec = services.catalog.serving("hoarder")
    assert services.queues.ask(Question(spec, inputs)).result.error is None


def test_an_instance_that_grew_is_replaced_and_no_request_fails(services: Services) -> None:
    ask(services, 1)
    (before,) = instances(services)

    ask(services, 300)

    wait_until(lambda: {one.id for one in instances(services)} - {before.id}, 30, "the next one")
    ask(services, 1)
