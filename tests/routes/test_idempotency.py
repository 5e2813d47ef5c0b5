"""`Idempotency-Key`: the same key and request have one answer, computed once, for an hour."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from io import BytesIO
from typing import Any

import pytest
from answers import answer, refusal
from counting_model import POISON, CountingModel, counting_model, tensor, v2
from fake_backend import fake_spec
from flask import Flask
from flask.testing import FlaskClient
from picture_bytes import encoded
from PIL import Image
from registered import register, spec
from waiting import wait_until

from api.app import create_app
from shared.model_spec import ImageInput, ModelSpec, TensorSpec
from shared.settings import Settings

PREDICT, INFER = "/predict/fake", "/v2/models/fake/infer"
KEY = {"Idempotency-Key": "order-1"}
AN_HOUR_MS = 3_600_000
PICTURE = Image.new("RGB", (9, 9))
DOUBLES = spec("fake", TensorSpec(name="x", datatype="FP64", dims=(2,)))
SIZES = [
    spec(
        "fake", TensorSpec(name="x", datatype="FP32", dims=(3, side, side)),
        image=ImageInput(input="x", height=side, width=side),
    )
    for side in (2, 3)
]  # fmt: skip
"""Two versions of a model that takes pictures."""


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


@pytest.mark.parametrize(("path", "body"), [(PREDICT, tensor(1.0)), (INFER, v2(1.0))])
def test_the_same_key_and_body_have_the_same_answer_computed_once(
    settings: Settings, client: FlaskClient, model: CountingModel, path: str, body: Any
) -> None:
    other_process = create_app(settings).test_client()

    answers = [answer(each.post(path, json=body, headers=KEY)) for each in (client, other_process)]

    assert answers[0] == answers[1]
    assert model.passes == 1


def test_a_key_that_comes_again_while_the_first_runs_waits_for_its_answer(
    app: Flask, model: CountingModel
) -> None:
    model.gate.clear()
    with ThreadPoolExecutor(8) as pool:
        asked = [
            pool.submit(app.test_client().post, PREDICT, json=tensor(1.0), headers=KEY)
            for _ in range(8)
        ]
        wait_until(model.busy, 5, "one is in flight")
        model.gate.set()
        answers = [answer(each.result()) for each in asked]

    assert all(each == answers[0] for each in answers)
    assert model.computed == [1.0]


def test_key_and_answer_are_kept_for_an_hour(
    settings: Settings, client: FlaskClient, model: CountingModel
) -> None:
    answer(client.post(PREDICT, json=tensor(1.0), headers=KEY))

    (key,) = model.redis.scan_iter(match=f"{settings.key_prefix}:once:*")
    (result,) = model.redis.scan_iter(match=model.keys.result + "*")
    assert AN_HOUR_MS - 60_000 < model.redis.pttl(key) <= AN_HOUR_MS
    assert model.redis.pttl(key) <= model.redis.pttl(result) <= AN_HOUR_MS


@pytest.mark.parametrize(
    ("path", "body"),
    [(PREDICT, tensor(2.0)), (INFER, v2(1.0)), ("/predict/fake/versions/1", tensor(1.0))],
)
def test_another_request_under_the_same_key_is_refused(
    client: FlaskClient, model: CountingModel, path: str, body: Any
) -> None:
    answer(client.post(PREDICT, json=tensor(1.0), headers=KEY))

    refusal(client.post(path, json=body, headers=KEY), 422, "idempotency_conflict")

    assert model.computed == [1.0]


@pytest.mark.parametrize(
    ("path", "sent", "before", "after"),
    [
        (PREDICT, lambda: {"json": tensor(1.0)}, fake_spec(), DOUBLES),
        (
            "/v1/models/fake:predict", lambda: {"json": {"instances": [[1.0, 1.0]]}}, fake_spec(),
            DOUBLES,
        ),
        (PREDICT, lambda: {"data": encoded(PICTURE)}, *SIZES),
        (PREDICT, lambda: {"data": {"file": (BytesIO(encoded(PICTURE)), "name")}}, *SIZES),
    ],
)  # fmt: skip
def test_the_same_body_is_the_same_request_though_the_model_makes_other_inputs_of_it(
    settings: Settings,
    path: str,
    sent: Callable[[], Any],
    before: ModelSpec,
    after: ModelSpec,
) -> None:
    """Versions have datatypes and picture sizes of their own; the client sent the same."""
    found = []
    for version in (before, after):
        register(settings, version)
        client = create_app(settings).test_client()
        found.append(client.post(path, headers={**KEY, "Prefer": "respond-async"}, **sent()))

    assert [each.status_code for each in found] == [202, 202]
    assert found[0].headers["Location"] == found[1].headers["Location"]


def test_other_keys_are_other_requests(client: FlaskClient, model: CountingModel) -> None:
    for key in ("a", "b"):
        answer(client.post(PREDICT, json=tensor(1.0), headers={"Idempotency-Key": key}))

    assert model.computed == [1.0, 1.0]


def test_a_key_whose_first_request_was_refused_may_come_again(
    settings: Settings, app: Flask, client: FlaskClient, model: CountingModel
) -> None:
    model.gate.clear()
    small = create_app(replace(settings, max_queue_size=1)).test_client()
    for value in (1.0, 2.0):
        client.post(PREDICT, json=tensor(value), headers={"Prefer": "respond-async"})
        wait_until(model.busy, 5, "the first is in flight")

    response = small.post(PREDICT, json=tensor(3.0), headers=KEY)

    refusal(response, 503, "queue_full")
    assert "Retry-After" in response.headers
    assert list(model.redis.scan_iter(match=f"{settings.key_prefix}:once:*")) == []
    model.gate.set()
    wait_until(lambda: model.depth() == 0, 5, "there is room")
    assert answer(client.post(PREDICT, json=tensor(4.0), headers=KEY))["prediction"] == [[8.0, 8.0]]
    assert model.computed == [1.0, 2.0, 4.0]


def test_a_key_whose_first_request_expired_may_come_again(
    client: FlaskClient, model: CountingModel
) -> None:
    model.gate.clear()
    client.post(PREDICT, json=tensor(1.0), headers={"Prefer": "respond-async"})
    wait_until(model.busy, 5, "the first is in flight")

    late = client.post(PREDICT, json=tensor(2.0), headers={**KEY, "X-Request-Timeout": "0.2"})

    assert refusal(late, 503, "request_expired") == "Request timeout expired"
    model.gate.set()
    wait_until(lambda: model.depth() == 0, 5, "it is dropped")
    assert answer(client.post(PREDICT, json=tensor(2.0), headers=KEY))["prediction"] == [[4.0, 4.0]]
    assert model.computed == [1.0, 2.0]


def test_a_key_whose_first_process_died_before_it_pushed_is_taken_over(
    settings: Settings, client: FlaskClient, model: CountingModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    dying = create_app(settings)
    monkeypatch.setattr(dying.extensions["ferry"].async_answers, "_submit_first", lambda *_: 1 / 0)
    refusal(dying.test_client().post(PREDICT, json=tensor(1.0), headers=KEY), 500, "internal")

    assert answer(client.post(PREDICT, json=tensor(1.0), headers=KEY))["prediction"] == [[2.0, 2.0]]
    refusal(client.post(PREDICT, json=tensor(2.0), headers=KEY), 422, "idempotency_conflict")
    assert model.computed == [1.0]


def test_an_answer_stays_the_same_when_another_version_serves(
    settings: Settings, client: FlaskClient, model: CountingModel
) -> None:
    first = answer(client.post(PREDICT, json=tensor(1.0), headers=KEY))

    with counting_model(settings, version="2") as successor:
        catalog = create_app(settings)
        again = answer(catalog.test_client().post(PREDICT, json=tensor(1.0), headers=KEY))
        other = answer(catalog.test_client().post(PREDICT, json=tensor(1.0)))

    assert again == first
    assert (again["version"], other["version"]) == ("1", "2")
    assert (model.passes, successor.passes) == (1, 1)


def test_an_error_of_the_model_is_its_answer_too(client: FlaskClient, model: CountingModel) -> None:
    for _ in range(2):
        response = client.post(PREDICT, json=tensor(POISON), headers=KEY)
        refusal(response, 500, "model_failed")

    assert model.computed == []


def test_with_respond_async_the_key_names_the_same_request(
    client: FlaskClient, model: CountingModel
) -> None:
    later = {**KEY, "Prefer": "respond-async"}
    model.gate.clear()

    locations = {client.post(PREDICT, json=tensor(1.0), headers=later).location for _ in "ab"}
    model.gate.set()
    (location,) = locations
    by_id = answer(client.get(location + "?wait=10"))

    assert answer(client.post(PREDICT, json=tensor(1.0), headers=KEY)) == by_id
    assert answer(client.post(PREDICT, json=tensor(1.0), headers=later)) == by_id
    assert model.computed == [1.0]


@pytest.mark.parametrize("key", ["", "k" * 256])
def test_a_bad_key_is_refused(client: FlaskClient, key: str) -> None:
    refusal(client.post(PREDICT, json=tensor(1.0), headers={"Idempotency-Key": key}))
