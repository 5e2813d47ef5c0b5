"""`/predict` for people with curl: numbers in, numbers out, and the model chosen by its input."""

from __future__ import annotations

import io
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from answers import answer, refusal
from flask import Flask
from flask.testing import FlaskClient
from PIL import Image

from samples.digits import held_out
from shared.datatypes import Array

ROWS = np.random.default_rng(5).normal(size=(32, 16)).round(3)


def saved_model(sample_models: Path, name: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        load: Any = torch.jit.load
        return load(sample_models / name / "1" / "model.pt").eval()


def computed(model: Any, rows: Array) -> Array:
    """Return what the model itself says of `rows`, each alone."""
    with torch.inference_mode():
        return np.concatenate(
            [np.asarray(model(torch.from_numpy(row[None].astype(np.float32)))) for row in rows]
        )


def png(pixels: Array) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


# Numbers.


@pytest.mark.parametrize("count", [1, 2, 32])
def test_rows_are_answered_with_what_the_model_says(
    client: FlaskClient, sample_models: Path, count: int
) -> None:
    body = answer(client.post("/predict/tiny", json={"input_tensor": ROWS[:count].tolist()}))

    expected = computed(saved_model(sample_models, "tiny"), ROWS[:count])
    np.testing.assert_allclose(body["prediction"], expected, atol=1e-5)


def test_an_answer_says_who_made_it_and_what_it_cost(client: FlaskClient) -> None:
    response = client.post("/predict/tiny", json={"input_tensor": ROWS[:3].tolist()})

    body = answer(response)
    assert set(body) == {"prediction", "model", "version", "timings"}
    assert (body["model"], body["version"]) == ("tiny", "1")
    assert body["timings"]["batch_size"] >= 3
    assert "compute;dur=" in response.headers["Server-Timing"]


def test_a_version_may_be_named(client: FlaskClient) -> None:
    body = answer(client.post("/predict/tiny/versions/1", json={"input_tensor": ROWS[:1].tolist()}))

    assert body["version"] == "1"


def test_json_is_taken_without_a_content_type(client: FlaskClient) -> None:
    data = b'\n {"input_tensor": [' + str(ROWS[0].tolist()).encode() + b"]}"

    assert len(answer(client.post("/predict/tiny", data=data))["prediction"]) == 1


def test_v2_and_predict_give_the_same_numbers(client: FlaskClient) -> None:
    item = {"name": "INPUT__0", "shape": [2, 16], "datatype": "FP32", "data": ROWS[:2].tolist()}

    v2 = answer(client.post("/v2/models/tiny/infer", json={"inputs": [item]}))
    predict = answer(client.post("/predict/tiny", json={"input_tensor": ROWS[:2].tolist()}))

    found = np.reshape(v2["outputs"][0]["data"], (2, 3))
    np.testing.assert_allclose(found, predict["prediction"], atol=1e-6)


# The model that fits.


def test_the_only_model_for_numbers_needs_no_name(client: FlaskClient) -> None:
    body = answer(client.post("/predict", json={"input_tensor": ROWS[:1].tolist()}))

    assert body["model"] == "tiny"


def test_all_models_for_pictures_are_listed(client: FlaskClient, sample_models: Path) -> None:
    # `photos` is left out where its packages cannot be had.
    there = [name for name in ("digits", "photos", "resnet18") if (sample_models / name).is_dir()]
    message = refusal(client.post("/predict", data=png(np.zeros((8, 8), np.uint8))))

    assert message.startswith(f"{len(there)} models take image input")
    assert message.endswith(f"one of {', '.join(map(repr, there))}")


# Many clients.


def test_rows_of_32_clients_at_once_get_the_answers_they_get_alone(
    app: Flask, sample_models: Path
) -> None:
    def ask(row: Array) -> Any:
        body = {"input_tensor": [row.tolist()]}
        return answer(app.test_client().post("/predict/tiny", json=body))["prediction"][0]

    with ThreadPoolExecutor(32) as pool:
        found = list(pool.map(ask, ROWS))

    expected = computed(saved_model(sample_models, "tiny"), ROWS)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("bad", [b"no picture", b"", b"GIF89a"], ids=["text", "empty", "cut"])
def test_a_bad_picture_among_31_good_ones_stays_alone(
    app: Flask, sample_models: Path, bad: bytes
) -> None:
    pictures, _ = held_out()
    files = [png(picture) for picture in pictures[:32]]
    files[13] = bad

    with ThreadPoolExecutor(32) as pool:
        responses = list(
            pool.map(lambda data: app.test_client().post("/predict/digits", data=data), files)
        )

    refusal(responses[13])
    model = saved_model(sample_models, "digits")
    for index in (*range(13), *range(14, 32)):
        pixels = Image.fromarray(pictures[index]).resize((32, 32), Image.Resampling.BILINEAR)
        logits = computed(model, (np.asarray(pixels)[None, None] / 255 - 0.5) / 0.5)
        assert answer(responses[index])["class"] == int(logits.argmax())
