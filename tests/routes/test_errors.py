"""Every failure is JSON with `error` and `code`; what is our fault says nothing but an id."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

import pytest
from answers import answer, refusal
from flask import Flask
from flask.testing import FlaskClient
from registered import register, report_failure, spec

from api.app import create_app
from shared import errors
from shared.model_spec import ModelSpec, TensorSpec
from shared.settings import Settings

NUMBERS = spec("numbers", TensorSpec(name="x", datatype="FP32", dims=(4,)))
ROW = {"input_tensor": [[1, 2, 3, 4]]}


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return Settings(
        redis_url=settings.redis_url,
        key_prefix=settings.key_prefix,
        request_timeout_seconds=0.3,
        max_queue_size=1,
    )


@pytest.fixture
def app(settings: Settings) -> Flask:
    return create_app(settings)


@pytest.mark.parametrize("error", errors.all_errors(), ids=lambda error: error.code)
def test_every_error_is_answered_with_its_status_code_and_message(
    app: Flask, error: type[errors.FerryError]
) -> None:
    app.add_url_rule("/fail", view_func=raising(error("what was wrong")))

    response = app.test_client().get("/fail")

    assert refusal(response, error.status, error.code) == "what was wrong"
    assert response.headers.get("Retry-After") == (
        None if error.retry_after_seconds is None else str(error.retry_after_seconds)
    )


def raising(error: Exception) -> Callable[[], str]:
    def view() -> str:
        raise error

    return view


def test_what_nobody_expected_is_a_bare_500_whose_id_is_in_the_log(
    app: Flask, caplog: pytest.LogCaptureFixture
) -> None:
    app.add_url_rule("/fail", view_func=raising(RuntimeError("password=hunter2")))

    with caplog.at_level(logging.ERROR):
        message = refusal(app.test_client().get("/fail"), 500, "internal")

    assert "hunter2" not in message
    error_id = message.removeprefix("internal error ")
    assert len(error_id) == 12
    assert error_id in caplog.text and "hunter2" in caplog.text


def test_codes_are_unique_and_every_error_says_when_it_is_raised() -> None:
    classes = errors.all_errors()

    assert len({error.code for error in classes}) == len(classes)
    assert all(error.__doc__ for error in classes)


@pytest.mark.parametrize("error", errors.all_errors(), ids=lambda error: error.code)
def test_an_error_is_rebuilt_from_its_code_and_message(error: type[errors.FerryError]) -> None:
    rebuilt = errors.by_code(error.code, "what was wrong")

    assert type(rebuilt) is error
    assert rebuilt.message == "what was wrong"


def test_an_unknown_code_becomes_a_plain_error() -> None:
    rebuilt = errors.by_code("of_a_newer_worker", "what was wrong")

    assert type(rebuilt) is errors.FerryError
    assert rebuilt.status == 500


def test_a_model_that_no_worker_has_loaded_is_not_ready(app: Flask, settings: Settings) -> None:
    register(settings, NUMBERS, ready=False)
    client = app.test_client()

    for path in ("/predict/numbers", "/v2/models/numbers/infer"):
        response = client.post(path, json=ROW)
        assert "not ready" in refusal(response, 503, "model_not_ready")
        assert response.headers["Retry-After"] == "1"
    not_ready = client.get("/v2/models/numbers/ready")
    assert not_ready.status_code == 400
    reason = "no worker has loaded it"
    assert not_ready.get_json() == {"name": "numbers", "ready": False, "reason": reason}


def test_a_model_that_failed_to_load_says_why(app: Flask, settings: Settings) -> None:
    register(settings)
    report_failure(settings, "numbers", "failed to load 'numbers', config.pbtxt: wrong")
    client = app.test_client()

    response = client.post("/predict/numbers", json=ROW)

    message = refusal(response, 503, "model_not_ready")
    assert message == "failed to load 'numbers', config.pbtxt: wrong"
    assert client.get("/v2/models/numbers/ready").status_code == 400
    assert client.get("/v2/health/ready").status_code == 400


def test_metadata_of_a_model_that_is_not_ready_is_answered(app: Flask, settings: Settings) -> None:
    register(settings, NUMBERS, ready=False)

    metadata = answer(app.test_client().get("/v2/models/numbers"))

    assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]


def test_a_request_that_nobody_answers_expires_with_503(app: Flask, settings: Settings) -> None:
    register(settings, NUMBERS)

    response = app.test_client().post("/predict/numbers", json=ROW)

    assert refusal(response, 503, "request_expired") == "Request timeout expired"


def test_a_full_queue_refuses_in_tritons_words(settings: Settings) -> None:
    register(settings, NUMBERS)
    client = create_app(replace(settings, request_timeout_seconds=60.0)).test_client()
    first = client.post("/predict/numbers", json=ROW, headers={"Prefer": "respond-async"})
    assert first.status_code == 202

    response = client.post("/predict/numbers", json=ROW)

    assert refusal(response, 503, "queue_full") == "Exceeds maximum queue size"
    assert response.headers["Retry-After"] == "1"


def test_an_empty_registry_is_not_ready(client: FlaskClient) -> None:
    assert client.get("/v2/health/ready").status_code == 400
    assert client.get("/v2/health/live").get_json() == {"live": True}


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


def test_predict_without_any_model_says_so(client: FlaskClient) -> None:
    message = refusal(client.post("/predict", json=ROW))

    assert message == "no model takes tensor input, because none is served"


def test_two_models_of_a_kind_are_listed_as_candidates(
    client: FlaskClient, settings: Settings
) -> None:
    second: ModelSpec = NUMBERS.model_copy(update={"name": "others"})
    register(settings, NUMBERS, second)

    message = refusal(client.post("/predict", json=ROW))

    assert message.endswith("one of 'numbers', 'others'")
