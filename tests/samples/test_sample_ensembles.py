"""The sample ensembles: one answers as the whole `sentiment` does, one reads encoded pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from ferry_processes import running_worker
from flask.testing import FlaskClient
from PIL import Image

from api.app import create_app
from ferry.commands.samples import is_finished, make_samples
from samples.digits import held_out
from shared.settings import Settings

TEXTS = [
    "What a lovely evening!", "The soup was cold and nobody cared.", "I would not go there again.",
    "Not bad at all, and the staff were kind.", "It was.",
]  # fmt: skip


@pytest.fixture(scope="module")
def repository(sample_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    models = tmp_path_factory.mktemp("ensembles") / "models"
    models.mkdir()
    for name in ("digits", "sentiment"):
        (models / name).symlink_to(sample_models / name)
    make_samples(["sentiment_ensemble", "digit_reader"], models)
    return models


@pytest.fixture(scope="module")
def client(redis_url: str, repository: Path) -> Iterator[FlaskClient]:
    settings = Settings(
        redis_url=redis_url, key_prefix="sample-ensembles", models=str(repository),
        request_timeout_seconds=20.0,
    )  # fmt: skip
    with running_worker(settings):
        yield create_app(settings).test_client()


def test_each_ensemble_comes_with_its_steps(repository: Path) -> None:
    found = {path.name for path in repository.iterdir()}
    steps = {"sentiment_encoder", "sentiment_head", "picture_decoder"}

    assert found == {"digits", "sentiment", "sentiment_ensemble", "digit_reader"} | steps
    assert is_finished(repository / "sentiment_ensemble")
    assert is_finished(repository / "digit_reader")


def test_encoder_and_head_answer_as_the_whole_model_does(client: FlaskClient) -> None:
    whole, split = (
        client.post(f"/predict/{model}", json={"text": TEXTS}).get_json()["predictions"]
        for model in ("sentiment", "sentiment_ensemble")
    )

    assert [row["sentiment"] for row in split] == [row["sentiment"] for row in whole]
    assert [row["confidence"] for row in split] == pytest.approx(
        [row["confidence"] for row in whole], abs=1e-4
    )


def test_texts_of_many_lengths_share_the_encoder_s_batches(client: FlaskClient) -> None:
    alone = [
        client.post("/predict/sentiment_ensemble", json={"text": text}).get_json() for text in TEXTS
    ]
    together = client.post("/predict/sentiment_ensemble", json={"text": TEXTS}).get_json()

    assert [row["confidence"] for row in alone] == pytest.approx(
        [row["confidence"] for row in together["predictions"]], abs=1e-4
    )


def test_an_encoded_picture_of_any_size_becomes_a_digit(client: FlaskClient) -> None:
    pictures, labels = held_out()
    rows = []
    for index in range(20):
        encoded = io.BytesIO()
        side = 40 + 7 * index
        Image.fromarray(pictures[index]).resize((side, side)).save(
            encoded, "PNG" if index % 2 else "JPEG"
        )
        rows.append([{"b64": base64.b64encode(encoded.getvalue()).decode()}])
    answer = client.post("/v1/models/digit_reader:predict", json={"instances": rows})

    found = np.argmax(answer.get_json()["predictions"], axis=1)
    assert (found == labels[:20]).mean() >= 0.9


def test_the_ensemble_reads_a_picture_as_digits_does(client: FlaskClient) -> None:
    encoded = io.BytesIO()
    Image.fromarray(held_out()[0][3]).resize((64, 64)).save(encoded, "PNG")
    b64 = {"b64": base64.b64encode(encoded.getvalue()).decode()}
    read = client.post("/v1/models/digit_reader:predict", json={"instances": [[b64]]}).get_json()
    known = client.post("/v1/models/digits:predict", json={"instances": [b64]}).get_json()

    assert read["predictions"][0] == pytest.approx(known["predictions"][0], abs=1e-3)


def test_what_is_no_picture_fails_alone_in_the_decoder(client: FlaskClient) -> None:
    b64 = {"b64": base64.b64encode(b"no picture").decode()}
    answer = client.post("/v1/models/digit_reader:predict", json={"instances": [[b64]]})

    assert answer.status_code == 500
    said = answer.get_json()["error"]
    assert said.startswith("in ensemble 'digit_reader', step 1 ('picture_decoder'): ")
    assert "cannot identify image file" in said
