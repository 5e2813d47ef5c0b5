"""Exports as a worker serves them: machine code in batches, and proved bytes alone."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exported_models import Trained
from ferry_processes import running_worker
from flask.testing import FlaskClient
from waiting import wait_until
from worker_processes import seen

from api.app import create_app
from ferry.cli import main
from shared.settings import Settings

WAIT_SECONDS = 60


@pytest.fixture(scope="module")
def settings(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A repository with a verified AOTI package, every version of which is to be served."""
    models = tmp_path_factory.mktemp("served") / "models"
    found = Settings(redis_url=redis_url, key_prefix="served-exports", models=str(models))
    export(found, "aoti")
    with (models / "m" / "config.pbtxt").open("a") as config:
        config.write("version_policy { all { } }\n")
    verify(found, "1")
    return replace(
        found, allow_machine_code=True, require_verified=True, model_control_mode="poll",
        poll_seconds=0.3,
    )  # fmt: skip


def export(settings: Settings, to: str) -> None:
    options = ("--input", "x:4", "--to", to, "--name", "m", "--models", settings.models)
    assert main(["export", "exported_models:Trained", *options]) == 0


def verify(settings: Settings, version: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FERRY_ALLOW_MACHINE_CODE", "1")
        assert main(["verify", "m", "--version", version, "--models", settings.models]) == 0


@pytest.fixture(scope="module")
def client(settings: Settings) -> Iterator[FlaskClient]:
    client = create_app(settings).test_client()
    with running_worker(settings):
        yield client


def state(client: FlaskClient, version: str) -> tuple[str, str]:
    """Return the state of a version, and the reason for it."""
    index: Any = client.post("/v2/repository/index").get_json()
    found = next((each for each in index if each.get("version") == version), {})
    return found.get("state", ""), found.get("reason", "")


def wait_for(client: FlaskClient, expected: str, reason: str) -> None:
    def is_so() -> bool:
        now, said = state(client, "2")
        return now == expected and reason in said

    wait_until(is_so, WAIT_SECONDS, f"version 2 is {expected}: {reason}")


def kill_instance(settings: Settings, version: str) -> None:
    with seen(settings, "m") as served:
        (record,) = [each for each in served.records() if each.version == version]
    os.kill(record.pid, signal.SIGKILL)


@pytest.mark.parametrize("rows", [1, 2, 7, 32])
def test_machine_code_answers_batches_of_any_size(client: FlaskClient, rows: int) -> None:
    x = np.random.default_rng(rows).normal(size=(rows, 4)).astype(np.float32)
    given = {"name": "x", "shape": [rows, 4], "datatype": "FP32", "data": x.ravel().tolist()}

    response = client.post("/v2/models/m/versions/1/infer", json={"inputs": [given]})

    with torch.inference_mode():
        expected = Trained().eval()(torch.from_numpy(x)).numpy()
    answer: Any = response.get_json()["outputs"][0]
    assert answer["shape"] == [rows, 3]
    assert answer["data"] == pytest.approx(expected.ravel(), abs=1e-5)


def test_a_version_is_served_once_it_is_verified_and_never_with_other_bytes(
    client: FlaskClient, settings: Settings
) -> None:
    export(settings, "exported")
    missing = "m/2/verify.json is missing: `ferry verify m --version 2` proves it"
    wait_for(client, "UNAVAILABLE", missing)

    verify(settings, "2")
    wait_for(client, "READY", "")
    with (Path(settings.models) / "m" / "2" / "model.pt2").open("ab") as file:
        file.write(b"\0")

    changed = "model.pt2 is not what"
    wait_for(client, "READY", "serves as it was loaded: failed to load 'm', FERRY_REQUIRE_VERIFIED")
    assert changed in state(client, "2")[1]
    kill_instance(settings, "2")
    wait_for(client, "UNAVAILABLE", changed)
    assert state(client, "1") == ("READY", "")
