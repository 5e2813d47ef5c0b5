"""Without Redis a request is refused at once; when Redis is back, everything serves by itself."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import numpy as np
import pytest
from answers import answer, refusal
from ferry_processes import running_worker
from flask import Flask
from flask.testing import FlaskClient
from own_valkey import OwnValkey
from waiting import wait_until
from werkzeug.test import TestResponse

from api.app import create_app
from samples.tiny import make
from shared.registry.catalog import RESTART_GRACE_SECONDS, Catalog
from shared.settings import Settings
from shared.wire.client import COMMAND_TIMEOUT_SECONDS

ROW = np.linspace(-1, 1, 16).round(3).tolist()


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnValkey]:
    valkey = OwnValkey(tmp_path_factory.mktemp("v"))
    yield valkey
    valkey.server.stop()


@pytest.fixture(scope="module")
def app(valkey: OwnValkey, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flask]:
    models = tmp_path_factory.mktemp("models")
    make(models / "tiny")
    settings = Settings(
        redis_url=valkey.server.url, models=str(models), request_timeout_seconds=10.0
    )
    with running_worker(settings):
        yield create_app(settings)


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


def ask(client: FlaskClient) -> TestResponse:
    return client.post("/predict/tiny", json={"input_tensor": [ROW]})


def refused_at_once(client: FlaskClient) -> None:
    began = time.monotonic()
    response = ask(client)
    assert time.monotonic() - began < 5.0
    refusal(response, 503, "redis_unavailable")
    assert response.headers["Retry-After"] == "1"


def test_requests_are_refused_while_redis_is_away_and_served_when_it_is_back(
    client: FlaskClient, valkey: OwnValkey
) -> None:
    before = answer(ask(client))["prediction"]

    valkey.kill()
    for _ in range(3):
        refused_at_once(client)
    assert client.get("/v2/health/live").status_code == 200
    assert client.get("/v2/health/ready").status_code == 400
    valkey.start_again()

    wait_until(lambda: ask(client).status_code == 200, 10, "requests are served again")
    assert answer(ask(client))["prediction"] == before
    wait_until(lambda: client.get("/v2/health/ready").status_code == 200, 10, "ready again")


def test_a_redis_that_hangs_is_noticed_and_told_at_once(
    client: FlaskClient, valkey: OwnValkey
) -> None:
    answer(ask(client))

    os.kill(valkey.server.process.pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        assert client.get("/v2/health/ready").status_code == 400
        noticed = time.monotonic()
        for _ in range(5):
            assert client.get("/v2/health/ready").status_code == 400
        told = time.monotonic()
    finally:
        os.kill(valkey.server.process.pid, signal.SIGCONT)

    assert noticed - began < 2 * COMMAND_TIMEOUT_SECONDS
    assert told - noticed < COMMAND_TIMEOUT_SECONDS, "one of the five waited"
    wait_until(lambda: client.get("/v2/health/ready").status_code == 200, 30, "ready again")
    wait_until(lambda: ask(client).status_code == 200, 30, "requests are served again")


def test_a_long_outage_is_still_called_by_its_name(
    client: FlaskClient, app: Flask, valkey: OwnValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer(ask(client))
    real = time.monotonic

    valkey.kill()
    with monkeypatch.context() as patch:
        patch.setattr(
            "shared.registry.catalog.time.monotonic", lambda: real() + 2 * RESTART_GRACE_SECONDS
        )
        response = ask(client)
    valkey.start_again()

    refusal(response, 503, "redis_unavailable")
    wait_until(lambda: ask(client).status_code == 200, 10, "requests are served again")
    catalog: Catalog = app.extensions["ferry"].catalog
    assert catalog.is_ready("tiny")


@pytest.mark.parametrize("url", ["unix:///nowhere/valkey.sock", "redis://127.0.0.1:1"])
def test_an_api_that_never_saw_redis_refuses_at_once(url: str) -> None:
    client = create_app(Settings(redis_url=url)).test_client()

    for path in ("/predict/tiny", "/v2/models/tiny/infer", "/predict"):
        began = time.monotonic()
        response = client.post(path, json={"input_tensor": [ROW]})
        assert time.monotonic() - began < 5.0
        refusal(response, 503, "redis_unavailable")
        assert response.headers["Retry-After"] == "1"
