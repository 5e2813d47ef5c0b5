"""What goes wrong in a step is said with the step's name, and stays with its request."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from ensemble_models import (
    PlusOne,
    Slowly,
    Step,
    Twice,
    add_ensemble,
    add_small,
    infer_body,
    x_to_y,
)  # fmt: skip
from ferry_processes import running_worker
from flask import Flask
from flask.testing import FlaskClient
from waiting import wait_until
from worker_processes import seen

from api.app import create_app
from shared.settings import Settings


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    models = tmp_path_factory.mktemp("errors")
    add_small(models, "twice", Twice())
    add_small(models, "plus_one", PlusOne())
    add_small(models, "slowly", Slowly(), max_batch_size=1)
    chain = [x_to_y("twice", "in", "x2"), x_to_y("plus_one", "x2", "out")]
    add_ensemble(models, "chain", chain)
    add_ensemble(models, "outer", [Step("chain", {"in": "in"}, {"out": "out"})])
    add_ensemble(models, "slow_chain", [x_to_y("slowly", "in", "out")], max_batch_size=1)
    return models


@pytest.fixture(scope="module")
def settings_of_all(redis_url: str, repository: Path) -> Settings:
    return Settings(
        redis_url=redis_url, key_prefix="ensemble-errors", models=str(repository),
        request_timeout_seconds=20.0,
    )  # fmt: skip


@pytest.fixture(scope="module")
def app(settings_of_all: Settings) -> Iterator[Flask]:
    with running_worker(settings_of_all):
        yield create_app(settings_of_all)


def outcome(app: Flask, model: str, value: float, **headers: str) -> tuple[int, str]:
    """Return the status of an answer, and what was wrong or the first number."""
    path = f"/v2/models/{model}/infer"
    response = app.test_client().post(path, json=infer_body(value), headers=headers)
    assert response.json is not None
    said = response.json.get("error") or str(response.json["outputs"][0]["data"][0])
    return response.status_code, said


def test_a_model_that_raises_is_named_with_its_step(app: Flask) -> None:
    status, said = outcome(app, "chain", 6.5)

    assert status == 500
    assert said.startswith("in ensemble 'chain', step 2 ('plus_one'): ")
    assert "13 is not to my taste" in said


def test_each_ensemble_on_the_way_names_its_step(app: Flask) -> None:
    _, said = outcome(app, "outer", 6.5)

    steps = "in ensemble 'outer', step 1 ('chain'): in ensemble 'chain', step 2 ('plus_one'): "
    assert said.startswith(steps)


def test_neighbours_of_a_request_that_fails_get_their_answers(app: Flask) -> None:
    values = [6.5 if number % 5 == 0 else float(number) for number in range(40)]
    with ThreadPoolExecutor(40) as pool:
        found = list(pool.map(lambda value: outcome(app, "chain", value), values))

    for value, (status, said) in zip(values, found, strict=True):
        assert (status, said) == (200, str(2 * value + 1)) or (status == 500 and value == 6.5)


def test_what_is_wrong_with_the_body_is_told_by_the_api(app: Flask) -> None:
    body = infer_body(1.0)
    body["inputs"][0]["datatype"] = "INT64"
    response = app.test_client().post("/v2/models/chain/infer", json=body)

    assert response.status_code == 400
    assert response.json is not None
    assert response.json["error"] == "input 'in': datatype INT64, the model wants FP32"


def test_a_deadline_that_passes_in_a_step_takes_the_step_off_its_queue(
    app: Flask, settings_of_all: Settings
) -> None:
    with seen(settings_of_all, "slowly") as slowly, ThreadPoolExecutor(2) as pool:
        stopped = slowly.wait_ready()[0]
        os.kill(stopped.pid, signal.SIGSTOP)  # its claim stands in Redis and still takes one
        try:
            terms = {"X-Request-Timeout": "1"}
            late = [pool.submit(outcome, app, "slow_chain", 1.0, **terms) for _ in range(2)]
            key = slowly.keys.queue + "1"
            wait_until(lambda: slowly.redis.llen(key), 10, "a step waits")
            found = [each.result() for each in late]
            wait_until(lambda: not slowly.redis.llen(key), 10, "the step is taken off")
        finally:
            os.kill(stopped.pid, signal.SIGCONT)

    expired = "Request timeout expired"
    of_step = f"in ensemble 'slow_chain', step 1 ('slowly'): {expired}"
    for each in found:  # by the API, or by the ensemble where its answer was quicker
        assert each in ((503, expired), (503, of_step))


def test_an_ensemble_is_ready_when_its_steps_are(tmp_path: Path, settings: Settings) -> None:
    models = tmp_path / "models"
    file = add_small(models, "twice", Twice())
    add_small(models, "plus_one", PlusOne())
    add_ensemble(models, "chain", [x_to_y("plus_one", "in", "x1"), x_to_y("twice", "x1", "out")])
    add_ensemble(models, "outer", [Step("chain", {"in": "in"}, {"out": "out"})])
    whole = file.read_bytes()
    file.write_bytes(b"no model")
    settings = replace(settings, models=str(models))
    with running_worker(settings, wait_ready=False):
        client = create_app(settings).test_client()
        wait_until(lambda: _states(client) == {"READY", "UNAVAILABLE"}, 30, "all but twice loaded")
        index = {entry["name"]: entry for entry in _index(client)}
        ready = client.get("/v2/models/chain/ready")
        refused = client.post("/v2/models/chain/infer", json=infer_body(1.0))
        all_ready = client.get("/v2/health/ready")
        file.write_bytes(whole)
        wait_until(lambda: _states(client) == {"READY"}, 30, "twice is tried again")
        answered = client.post("/v2/models/outer/infer", json=infer_body(1.0))

    where = "step 2 of ensemble 'chain': model 'twice' is not ready: failed to load 'twice'"
    states = {name: entry["state"] for name, entry in index.items()}
    assert states == {"plus_one": "READY"} | dict.fromkeys(
        ["chain", "outer", "twice"], "UNAVAILABLE"
    )
    assert index["chain"]["reason"].startswith(where)
    assert index["outer"]["reason"].startswith(f"step 1 of ensemble 'outer': {where}")
    assert ready.status_code == all_ready.status_code == 400
    assert refused.status_code == 503
    assert refused.get_json()["error"].startswith(where)
    assert answered.get_json()["outputs"][0]["data"] == [4.0, 4.0]


def _index(client: FlaskClient) -> list[dict[str, str]]:
    entries: list[dict[str, str]] = client.post("/v2/repository/index", json={}).get_json()
    return entries


def _states(client: FlaskClient) -> set[str]:
    """Return the states of all four models, none before all are there."""
    entries = _index(client)
    return {entry["state"] for entry in entries} if len(entries) == 4 else set()
