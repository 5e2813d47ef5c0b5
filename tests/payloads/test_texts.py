"""Texts become token ids in the API, share a batch by padding, and say when they were cut.

The model is a stand-in that counts the words "bad" and "good", so every answer is known by hand.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from answers import answer, refusal
from ferry_processes import running_worker
from flask import Flask
from flask.testing import FlaskClient
from stand_ins import text_model

from api.app import create_app
from shared.settings import Settings

# With [CLS] and [SEP], a text of six words just fits.
MAX_LENGTH = 8


@pytest.fixture(scope="module")
def app(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flask]:
    models = tmp_path_factory.mktemp("models")
    text_model(models, "counts", max_length=MAX_LENGTH, truncate=True)
    text_model(models, "strict", max_length=MAX_LENGTH, truncate=False)
    for name, datatype in (("fixed", "INT32"), ("floats", "FP32")):
        text_model(models, name, max_length=512, truncate=True, length=8, datatype=datatype)
    settings = Settings(redis_url=redis_url, key_prefix="texts", models=str(models))
    with running_worker(settings):
        yield create_app(settings)


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


def ask(client: FlaskClient, text: Any, model: str = "counts") -> Any:
    return answer(client.post(f"/predict/{model}", json={"text": text}))


def test_a_text_is_answered_under_the_models_own_key(client: FlaskClient) -> None:
    body = ask(client, "the film was good")

    assert body["sentiment"] == "positive"
    assert body["confidence"] == pytest.approx(1 / (1 + math.exp(-1)), abs=1e-5)
    assert {entry["label"] for entry in body["top_k"]} == {"positive", "negative"}
    assert "truncated" not in body
    assert body["model"] == "counts" and body["timings"]["instance"]


@pytest.mark.parametrize("model", ["fixed", "floats"])
def test_a_model_of_fixed_length_and_other_ids_answers_alike(
    client: FlaskClient, model: str
) -> None:
    """Its eight tokens are padded, or cut: `max_length` says 512."""
    long = "good " * 9

    for text in ("good", "bad bad good", "the food was bad", long):
        body, usual = ask(client, text, model), ask(client, text)
        assert body["sentiment"] == usual["sentiment"]
        assert body["confidence"] == pytest.approx(usual["confidence"], abs=1e-5)
    assert ask(client, [long, "bad"], model)["predictions"][0]["truncated"] is True


def test_a_list_of_texts_is_answered_in_order(client: FlaskClient) -> None:
    texts = ["good", "bad bad the film was bad", "the food was good good", "bad"]

    body = ask(client, texts)

    found = [row["sentiment"] for row in body["predictions"]]
    assert found == ["positive", "negative", "positive", "negative"]


def test_a_list_of_one_text_is_answered_as_a_list(client: FlaskClient) -> None:
    assert len(ask(client, ["good"])["predictions"]) == 1


def test_texts_of_different_length_get_the_answers_they_get_alone(client: FlaskClient) -> None:
    texts = ["good", "bad bad the film was good", "food", "the film was bad"]

    together = ask(client, texts)["predictions"]

    for row, text in zip(together, texts, strict=True):
        alone = ask(client, text)
        assert row == {key: alone[key] for key in row}


def test_texts_of_different_clients_get_the_answers_they_get_alone(app: Flask) -> None:
    texts = [
        "good " * (1 + index % 6) + "bad " * (index % 3 if index % 6 < 3 else 0)
        for index in range(24)
    ]

    def confidence(text: str) -> float:
        return float(ask(app.test_client(), text)["top_k"][0]["confidence"])

    with ThreadPoolExecutor(24) as pool:
        found = list(pool.map(confidence, texts))

    for text, value in zip(texts, found, strict=True):
        margin = abs(text.count("good") - text.count("bad"))
        assert value == pytest.approx(1 / (1 + math.exp(-margin)), abs=1e-5), text


def test_a_text_above_the_models_length_is_cut_and_says_so(client: FlaskClient) -> None:
    body = ask(client, "good good good good good good bad bad bad bad bad bad bad bad")

    assert body["truncated"] is True
    assert body["sentiment"] == "positive"


def test_a_text_of_exactly_the_models_length_is_not_cut(client: FlaskClient) -> None:
    assert "truncated" not in ask(client, "the film was good good good")


def test_only_the_text_that_was_cut_says_so(client: FlaskClient) -> None:
    rows = ask(client, ["good", "bad " * 50, "good"])["predictions"]

    assert [row.get("truncated", False) for row in rows] == [False, True, False]


def test_a_very_long_text_is_cut_without_reading_all_of_it(client: FlaskClient) -> None:
    assert ask(client, "good " * 1_000_000)["truncated"] is True


def test_a_text_above_the_length_is_refused_where_the_model_says_so(client: FlaskClient) -> None:
    response = client.post("/predict/strict", json={"text": ["good", "bad " * 7]})

    message = refusal(response)
    assert message == f"text 1 is longer than the {MAX_LENGTH} tokens of 'strict'"


@pytest.mark.parametrize("long", ["good " * 9, [5] * 9])
def test_the_text_to_embed_that_is_too_long_is_named_or_cut(
    client: FlaskClient, long: str | list[int]
) -> None:
    """Texts travel sorted by length, in pieces; ids are cut as texts are."""
    others: list[Any] = [[5]] * 40 if isinstance(long, list) else ["good"] * 40
    asked = {"input": [*others, long, *others]}

    refused = client.post("/v1/embeddings", json=asked | {"model": "strict"})

    assert (refused.status_code, refused.get_json()["error"]["param"]) == (400, "input")
    assert refused.get_json()["error"]["message"].startswith("text 40 is longer than the 8 tokens")
    cut = answer(client.post("/v1/embeddings", json=asked | {"model": "counts"}))
    special = 0 if isinstance(long, list) else 2
    assert cut["usage"]["prompt_tokens"] == 80 * (1 + special) + MAX_LENGTH


def test_a_text_that_fits_is_answered_where_longer_ones_are_refused(client: FlaskClient) -> None:
    assert ask(client, "good", model="strict")["sentiment"] == "positive"


@pytest.mark.parametrize("text", ["", "   ", "\n\t", ["good", ""]])
def test_an_empty_text_is_refused(client: FlaskClient, text: Any) -> None:
    response = client.post("/predict/counts", json={"text": text})

    assert "is empty" in refusal(response)


@pytest.mark.parametrize("text", ["schön 好 👍", "\x00\x01", "a\u0301 \u200b", "<b>&amp;</b>"])
def test_any_unicode_is_answered(client: FlaskClient, text: str) -> None:
    assert ask(client, text)["sentiment"] in {"positive", "negative"}


def test_more_texts_than_a_batch_holds_are_refused(client: FlaskClient) -> None:
    response = client.post("/predict/counts", json={"text": ["good"] * 9})

    assert "batch-size must be <= 8 for 'counts'" in refusal(response)


def test_two_text_models_are_listed_when_none_is_named(client: FlaskClient) -> None:
    message = refusal(client.post("/predict", json={"text": "good"}))

    assert message.endswith("one of 'counts', 'fixed', 'floats', 'strict'")


def test_json_is_taken_whatever_the_content_type_says(client: FlaskClient) -> None:
    form = "application/x-www-form-urlencoded"

    response = client.post("/predict/counts", data=b' {"text": "good"}', content_type=form)

    assert answer(response)["sentiment"] == "positive"


def test_top_k_limits_the_classes_named(client: FlaskClient) -> None:
    response = client.post("/predict/counts?top_k=1", json={"text": "good"})

    assert [entry["label"] for entry in answer(response)["top_k"]] == ["positive"]


def test_a_picture_for_a_text_model_is_refused(client: FlaskClient) -> None:
    message = refusal(client.post("/predict/counts", data=b"GIF89a"))

    assert message == """'counts' takes text input, not image: send {"text": "..."}"""


def test_token_ids_through_v2_are_answered(client: FlaskClient) -> None:
    ids = [2, 8, 4, 4, 3]
    body = {
        "inputs": [
            {"name": "input_ids", "shape": [1, 5], "datatype": "INT64", "data": [ids]},
            {"name": "attention_mask", "shape": [1, 5], "datatype": "INT64", "data": [1] * 5},
        ]
    }

    outputs = answer(client.post("/v2/models/counts/infer", json=body))["outputs"]

    assert outputs == [{"name": "logits", "datatype": "FP32", "shape": [1, 2], "data": [0, 2]}]
