"""Every request has a deadline: when it passes the client is told, and nothing is computed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from answers import answer, refusal
from counting_model import CountingModel, counting_model, tensor, v2
from flask import Flask
from flask.testing import FlaskClient
from waiting import wait_until
from werkzeug.test import TestResponse

from api.app import create_app
from shared.request_queue import limits as queue_limits
from shared.settings import Settings

PREDICT, INFER = "/predict/fake", "/v2/models/fake/infer"
SHORTLY = 0.2
WAYS = {
    "header of predict": (PREDICT, tensor(2.0), {"X-Request-Timeout": str(SHORTLY)}),
    "header of infer": (INFER, v2(2.0), {"X-Request-Timeout": str(SHORTLY)}),
    "parameter of infer": (INFER, v2(2.0, timeout=int(SHORTLY * 1e6)), {}),
    "parameter before header": (INFER, v2(2.0, timeout=200_000), {"X-Request-Timeout": "60"}),
}


@pytest.fixture
def model(settings: Settings) -> Iterator[CountingModel]:
    with counting_model(settings) as model:
        yield model


@pytest.fixture
def app(settings: Settings, model: CountingModel) -> Flask:
    return create_app(settings)


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


def keep_busy(pool: ThreadPoolExecutor, app: Flask, model: CountingModel) -> Future[TestResponse]:
    """Have the model hold one request, 1.0, until its gate is opened."""
    # Asked before the courier listens, it would be pushed again soon, and might run twice.
    answer(app.test_client().post(PREDICT, json=tensor(0.0)))
    model.computed.clear()
    model.gate.clear()
    first = pool.submit(app.test_client().post, PREDICT, json=tensor(1.0))
    wait_until(model.busy, 5, "the first is in flight")
    return first


@pytest.mark.parametrize("way", WAYS)
def test_a_request_that_expires_is_told_so_counted_and_never_computed(
    way: str, app: Flask, model: CountingModel, pool: ThreadPoolExecutor
) -> None:
    first = keep_busy(pool, app, model)
    path, body, headers = WAYS[way]

    response = app.test_client().post(path, json=body, headers=headers)

    assert refusal(response, 503, "request_expired") == "Request timeout expired"
    model.gate.set()
    answer(first.result())
    answer(app.test_client().post(PREDICT, json=tensor(3.0)))
    assert model.computed == [1.0, 3.0]
    assert model.count("expired") == 1


def test_a_request_that_expires_while_no_process_watches_it_is_dropped_at_the_claim(
    client: FlaskClient, app: Flask, model: CountingModel, pool: ThreadPoolExecutor
) -> None:
    first = keep_busy(pool, app, model)
    headers = {"X-Request-Timeout": str(SHORTLY), "Prefer": "respond-async"}
    accepted = client.post(PREDICT, json=tensor(2.0), headers=headers)

    location = accepted.headers["Location"]
    wait_until(lambda: client.get(location).status_code == 410, 5, "it has expired")
    assert model.depth() == 1
    model.gate.set()
    answer(first.result())
    answer(client.post(PREDICT, json=tensor(3.0)))

    assert model.computed == [1.0, 3.0]
    assert model.count("expired") == 1
    assert not model.redis.exists(model.keys.bytes)


def test_without_a_deadline_of_its_own_a_request_has_the_servers(
    settings: Settings, app: Flask, model: CountingModel, pool: ThreadPoolExecutor
) -> None:
    keep_busy(pool, app, model)
    hurried = create_app(replace(settings, request_timeout_seconds=SHORTLY)).test_client()

    for response in (
        hurried.post(PREDICT, json=tensor(2.0)),
        hurried.post(INFER, json=v2(2.0, timeout=0)),
    ):
        refusal(response, 503, "request_expired")

    model.gate.set()


def test_a_request_that_runs_at_its_deadline_is_told_and_its_answer_thrown_away(
    client: FlaskClient, app: Flask, model: CountingModel, pool: ThreadPoolExecutor
) -> None:
    model.gate.clear()

    response = client.post(PREDICT, json=tensor(1.0), headers={"X-Request-Timeout": "0.2"})

    refusal(response, 503, "request_expired")
    wait_until(lambda: model.count("expired") == 1, 5, "it is counted")
    model.gate.set()
    answer(client.post(PREDICT, json=tensor(2.0)))
    assert list(model.redis.scan_iter(match=model.keys.result + "*")) == []


@pytest.mark.parametrize("header", ["0", "-1", "nan", "inf", "soon", "", "3601"])
@pytest.mark.parametrize(("path", "body"), [(PREDICT, tensor(1.0)), (INFER, v2(1.0))])
def test_a_bad_deadline_is_refused(
    client: FlaskClient, model: CountingModel, path: str, body: Any, header: str
) -> None:
    refusal(client.post(path, json=body, headers={"X-Request-Timeout": header}))

    assert model.computed == []


@pytest.mark.parametrize("timeout", [-1, 0.5, "1", True, 3_600_000_001])
def test_a_bad_timeout_parameter_is_refused(client: FlaskClient, timeout: Any) -> None:
    refusal(client.post(INFER, json=v2(1.0, timeout=timeout)))


def test_an_answer_that_is_later_than_its_deadline_by_the_longest_batch_is_kept(
    settings: Settings, model: CountingModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue_limits, "BATCH_MARGIN_SECONDS", 0.0)
    client = create_app(replace(settings, max_batch_seconds=20.0)).test_client()
    headers = {"X-Request-Timeout": str(SHORTLY), "Prefer": "respond-async"}
    model.gate.clear()

    location = client.post(PREDICT, json=tensor(2.0), headers=headers).headers["Location"]
    wait_until(model.busy, 5, "it is in flight")
    late = time.monotonic() + 2 * SHORTLY
    wait_until(lambda: time.monotonic() > late, 5, "its deadline has passed")
    model.gate.set()

    wait_until(lambda: client.get(location).status_code != 202, 5, "it has ended")
    answer(client.get(location))
