"""`Prefer: respond-async`: 202 once Redis has stored it, and later exactly the same answer."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from answers import answer, refusal
from counting_model import POISON, CountingModel, counting_model, tensor, v2
from flask.testing import FlaskClient
from waiting import wait_until
from werkzeug.test import TestResponse

from api.app import create_app
from ferry.up.embedded_valkey import running
from samples.digits.pictures import write_pictures
from shared.settings import Settings

PREDICT, INFER = "/predict/fake", "/v2/models/fake/infer"
LATER = {"Prefer": "respond-async"}
UNKNOWN = "/v2/requests/" + "0" * 32


@pytest.fixture
def model(settings: Settings) -> Iterator[CountingModel]:
    with counting_model(settings) as model:
        yield model


@pytest.fixture
def asking(settings: Settings, model: CountingModel) -> FlaskClient:
    """A client of an API over the counting model."""
    return create_app(settings).test_client()


def accepted(response: TestResponse) -> str:
    """Return where the answer will be."""
    assert response.status_code == 202, response.text
    body = response.get_json()
    assert body["status"] == "waiting"
    assert response.headers["Location"] == body["location"] == f"/v2/requests/{body['id']}"
    location: str = body["location"]
    return location


def without_timings(response: TestResponse) -> dict[str, Any]:
    body: dict[str, Any] = answer(response)
    assert body.pop("timings")["batch_size"] >= 1
    assert "queue;dur" in response.headers["Server-Timing"]
    return body


@cache
def picture() -> bytes:
    with TemporaryDirectory() as directory:
        return write_pictures(Path(directory))[7].read_bytes()


def form(count: int) -> dict[str, Any]:
    """Return a form with so many pictures, which the request that sends it closes."""
    return {"file": [(io.BytesIO(picture()), "digit.png") for _ in range(count)]}


ASKED = {
    "picture": ("/predict/digits?top_k=4", lambda: {"data": form(1)}),
    "pictures": ("/predict/digits", lambda: {"data": form(2)}),
    "raw picture": ("/predict/digits", lambda: {"data": picture()}),
    "text": ("/predict/sentiment", lambda: {"json": {"text": "What a lovely evening!"}}),
    "cut texts": ("/predict/sentiment", lambda: {"json": {"text": ["good", "good " * 900]}}),
    "numbers": ("/predict/tiny", lambda: {"json": {"input_tensor": [[0.5] * 16]}}),
    "v2": (
        "/v2/models/tiny/infer",
        lambda: {
            "json": {
                "id": "mine",
                "inputs": [
                    {"name": "INPUT__0", "datatype": "FP32", "shape": [1, 16], "data": [0.5] * 16}
                ],
            }
        },
    ),
}


@pytest.mark.parametrize("kind", ASKED)
def test_the_answer_is_the_one_that_the_route_gives(client: FlaskClient, kind: str) -> None:
    path, body = ASKED[kind]
    at_once = without_timings(client.post(path, **body()))

    location = accepted(client.post(path, **body(), headers=LATER))

    assert without_timings(client.get(location + "?wait=20")) == at_once
    assert without_timings(client.get(location)) == at_once, "it can be read again"


def test_a_request_is_waiting_then_running_then_answered(
    asking: FlaskClient, model: CountingModel
) -> None:
    model.gate.clear()
    first, second, third = (
        accepted(asking.post(PREDICT, json=tensor(value), headers=LATER))
        for value in (1.0, 2.0, 3.0)
    )
    wait_until(model.busy, 5, "the first is in flight")

    states = [asking.get(each) for each in (first, second, third)]

    assert [each.status_code for each in states] == [202, 202, 202]
    bodies = [each.get_json() for each in states]
    assert [body["status"] for body in bodies] == ["running", "waiting", "waiting"]
    assert [body["position"] for body in bodies] == [0, 0, 1]
    model.gate.set()
    assert answer(asking.get(third + "?wait=10"))["prediction"] == [[6.0, 6.0]]


def test_a_long_poll_ends_with_the_answer_or_with_its_time(
    asking: FlaskClient, model: CountingModel
) -> None:
    model.gate.clear()
    location = accepted(asking.post(INFER, json=v2(1.0), headers=LATER))

    began = time.monotonic()
    in_vain = asking.get(location + "?wait=0.3")
    waited = time.monotonic() - began
    model.gate.set()
    answered = asking.get(location + "?wait=20")

    assert in_vain.status_code == 202 and 0.3 <= waited < 5
    assert answer(answered)["outputs"][0]["data"] == [2.0, 2.0]
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("wait", ["-1", "61", "nan", "inf", "soon", ""])
def test_a_bad_wait_is_refused(asking: FlaskClient, wait: str) -> None:
    refusal(asking.get(f"{UNKNOWN}?wait={wait}"))


@pytest.mark.parametrize("request_id", ["0" * 32, "0" * 31, "x" * 32, "..", "0" * 300])
def test_an_unknown_request_is_404(asking: FlaskClient, request_id: str) -> None:
    path = f"/v2/requests/{request_id}"

    assert refusal(asking.get(path), 404, "unknown_request").startswith("no request")
    refusal(asking.delete(path), 404, "unknown_request")


def test_an_answer_lives_as_long_as_the_setting_says_and_is_then_410(
    redis_url: str, settings: Settings, model: CountingModel, asking: FlaskClient
) -> None:
    location = accepted(asking.post(PREDICT, json=tensor(1.0), headers=LATER))
    answer(asking.get(location + "?wait=10"))
    result = model.keys.result + location.rpartition("/")[2]

    assert 50_000 < model.redis.pttl(result) <= 60_000
    model.redis.pexpire(result, 1)
    wait_until(lambda: not model.redis.exists(result), 5, "the answer expires")

    refusal(asking.get(location), 410, "request_gone")
    refusal(asking.delete(location), 410, "request_gone")


def test_an_error_is_the_answer_too(asking: FlaskClient) -> None:
    location = accepted(asking.post(PREDICT, json=tensor(POISON), headers=LATER))

    message = refusal(asking.get(location + "?wait=10"), 500, "model_failed")

    assert message == "ValueError: cannot stand -1.0"


def test_what_waits_can_be_cancelled_and_is_not_computed(
    asking: FlaskClient, model: CountingModel
) -> None:
    model.gate.clear()
    first, second = (
        accepted(asking.post(PREDICT, json=tensor(value), headers=LATER)) for value in (1.0, 2.0)
    )
    wait_until(model.busy, 5, "the first is in flight")

    cancelled = answer(asking.delete(second))

    assert cancelled == {"id": second.rpartition("/")[2], "status": "cancelled"}
    refusal(asking.get(second), 410, "request_gone")
    refusal(asking.delete(second), 410, "request_gone")
    model.gate.set()
    answer(asking.get(first + "?wait=10"))
    answer(asking.post(PREDICT, json=tensor(3.0)))
    assert model.computed == [1.0, 3.0]
    assert model.count("cancelled") == 1


def test_what_runs_or_is_answered_cannot_be_cancelled(
    asking: FlaskClient, model: CountingModel
) -> None:
    model.gate.clear()
    location = accepted(asking.post(PREDICT, json=tensor(1.0), headers=LATER))
    wait_until(model.busy, 5, "it is in flight")

    refusal(asking.delete(location), 409, "request_started")
    model.gate.set()
    answer(asking.get(location + "?wait=10"))
    refusal(asking.delete(location), 409, "request_started")

    answer(asking.get(location))


def test_a_bad_request_is_refused_at_once(asking: FlaskClient) -> None:
    refusal(asking.post(PREDICT, json={"input_tensor": [[1.0]]}, headers=LATER))


def test_a_refused_request_leaves_nothing_in_redis(
    settings: Settings, model: CountingModel
) -> None:
    model.gate.clear()
    client = create_app(replace(settings, max_queue_size=1)).test_client()
    accepted(client.post(PREDICT, json=tensor(1.0), headers=LATER))
    wait_until(model.busy, 5, "the first is in flight")
    accepted(client.post(PREDICT, json=tensor(2.0), headers=LATER))

    def keys() -> list[bytes]:
        # But for the figures, which say that it was refused.
        found = model.redis.scan_iter(match=f"{settings.key_prefix}:*")
        return sorted(key for key in found if not key.endswith((b":stats", b":counts")))

    before = keys()

    response = client.post(PREDICT, json=tensor(3.0), headers=LATER)

    refusal(response, 503, "queue_full")
    assert int(response.headers["Retry-After"]) >= 1
    assert keys() == before


def test_every_key_of_an_asynchronous_request_expires(
    settings: Settings, asking: FlaskClient, model: CountingModel
) -> None:
    location = accepted(asking.post(PREDICT, json=tensor(1.0), headers=LATER))
    answer(asking.get(location + "?wait=10"))

    found = [
        key
        for word in ("request", "spec")
        for key in model.redis.scan_iter(match=f"{settings.key_prefix}:{word}:*")
    ]

    assert len(found) == 2
    assert all(0 < model.redis.ttl(key) < 3 * 3600 for key in found)


@pytest.mark.parametrize(
    "prefer", ["respond-async, wait=10", "wait=10,Respond-Async;x=y", "respond-async"]
)
def test_the_preference_may_stand_among_others(asking: FlaskClient, prefer: str) -> None:
    accepted(asking.post(INFER, json=v2(1.0), headers={"Prefer": prefer}))


def test_another_preference_changes_nothing(asking: FlaskClient) -> None:
    answer(asking.post(INFER, json=v2(1.0), headers={"Prefer": "return=minimal"}))


def test_durable_requests_are_flushed_before_they_are_accepted(
    settings: Settings, tmp_path: Path
) -> None:
    with running(tmp_path) as server:
        durable = replace(settings, redis_url=server.url, durable=True)
        with counting_model(durable) as model:
            client = create_app(durable).test_client()

            location = accepted(client.post(PREDICT, json=tensor(1.0), headers=LATER))
            answer(client.get(location + "?wait=10"))
            calls = model.redis.info("commandstats")["cmdstat_waitaof"]["calls"]
            model.redis.config_set("appendonly", "no")
            model.gate.clear()
            quick = create_app(replace(durable, durable=False)).test_client()
            accepted(quick.post(PREDICT, json=tensor(2.0), headers=LATER))
            wait_until(model.busy, 5, "another is in flight")
            response = client.post(PREDICT, json=tensor(2.0), headers=LATER)

            message = refusal(response, 503, "redis_unavailable")
            assert calls == 1
            assert "appendonly is disabled" in message
            assert model.depth() == 0, "what was refused does not wait"
