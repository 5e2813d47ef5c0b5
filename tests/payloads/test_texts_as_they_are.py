"""A model whose one input is a string for each row takes texts by itself, whatever runs it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import joblib
import onnx
import pytest
from answers import answer, refusal
from ferry_processes import running_worker
from flask import Flask
from flask.testing import FlaskClient
from onnx import TensorProto, helper
from registered import register, spec
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from api.app import create_app
from shared.model_spec import TensorSpec
from shared.settings import Settings

MODEL = """
import numpy as np

class Model:
    def forward(self, inputs):
        texts = inputs["text"].ravel()
        good = [b"good" in text for text in texts]
        return {
            "sentiment": np.array([[b"positive" if g else b"negative"] for g in good], object),
            "sizes": np.array([[len(text), 0.5] for text in texts], np.float32),
            "scores": np.array([[0.25, 0.75] if g else [0.9, 0.1] for g in good], np.float32),
        }
"""
TEXT = 'input [ { name: "text" data_type: TYPE_STRING dims: [1] } ]\n'
SENTIMENT = '{ name: "sentiment" data_type: TYPE_STRING dims: [1] }'
SIZES = '{ name: "sizes" data_type: TYPE_FP32 dims: [2] }'
SCORES = '{ name: "scores" data_type: TYPE_FP32 dims: [2] label_filename: "labels.txt" }'
CONFIGS = {
    "named": f"max_batch_size: 8\n{TEXT}output [ {SENTIMENT} ]\n",
    "sizes_too": f"max_batch_size: 8\n{TEXT}output [ {SENTIMENT}, {SIZES} ]\n",
    "sure": f"max_batch_size: 8\n{TEXT}output [ {SENTIMENT}, {SCORES} ]\n",
    "scores_only": f"max_batch_size: 8\n{TEXT}output [ {SCORES} ]\n"
    'parameters { key: "output_activation" value { string_value: "none" } }\n',
    "sizes_only": f"max_batch_size: 8\n{TEXT}output [ {SIZES} ]\n",
    "free": f"max_batch_size: 8\n{TEXT.replace('[1]', '[-1]')}output [ {SENTIMENT} ]\n",
    "one_by_one": f"{TEXT}output [ {SENTIMENT.replace('[1]', '[1, 1]')} ]\n",
}


def python_model(repository: Path, name: str, config: str) -> None:
    version = repository / name / "1"
    version.mkdir(parents=True)
    (version / "model.py").write_text(MODEL)
    (version.parent / "config.pbtxt").write_text(config)
    (version.parent / "labels.txt").write_text("negative\npositive\n")


def onnx_echo(repository: Path) -> None:
    """Write an ONNX model that returns its strings, one for each row, without a config."""
    ends = [
        helper.make_tensor_value_info(n, TensorProto.STRING, ["n", 1]) for n in ("said", "heard")
    ]
    nodes = [helper.make_node("Identity", ["said"], ["heard"])]
    file = repository / "echo" / "1" / "model.onnx"
    file.parent.mkdir(parents=True)
    graph = helper.make_graph(nodes, "echo", ends[:1], ends[1:])
    opset = helper.make_opsetid("", 17)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=8), file)


def pipeline(repository: Path, name: str, config: str) -> None:
    """Write a scikit-learn pipeline from texts, with no config or a part of one."""
    fitted = make_pipeline(CountVectorizer(), LogisticRegression())
    fitted.fit(["good film", "bad film", "good food", "bad food"], ["positive", "negative"] * 2)
    file = repository / name / "1" / "model.joblib"
    file.parent.mkdir(parents=True)
    joblib.dump(fitted, file)
    if config:
        (repository / name / "config.pbtxt").write_text(config)


@pytest.fixture(scope="module")
def app(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flask]:
    models = tmp_path_factory.mktemp("models")
    for name, config in CONFIGS.items():
        python_model(models, name, config)
    onnx_echo(models)
    pipeline(models, "mood", "")
    pipeline(models, "contract", f"output [ {SENTIMENT} ]\n")
    settings = Settings(
        redis_url=redis_url, key_prefix="strings", models=str(models), allow_pickle=True
    )
    with running_worker(settings):
        yield create_app(settings)


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


def ask(client: FlaskClient, model: str, text: Any) -> dict[str, Any]:
    body: dict[str, Any] = answer(client.post(f"/predict/{model}", json={"text": text}))
    return {key: body[key] for key in body if key not in {"model", "version", "timings"}}


@pytest.mark.parametrize("model", ["named", "free", "one_by_one"])
def test_the_outputs_name_is_the_key(client: FlaskClient, model: str) -> None:
    assert ask(client, model, "a good film") == {"sentiment": "positive"}
    assert ask(client, model, "a bad film") == {"sentiment": "negative"}


def test_several_texts_are_answered_in_order(client: FlaskClient) -> None:
    found = ask(client, "named", ["good", "bad", "", "very good"])

    expected = ["positive", "negative", "negative", "positive"]
    assert found == {"predictions": [{"sentiment": each} for each in expected]}


def test_a_model_of_one_text_at_a_time_says_so(client: FlaskClient) -> None:
    response = client.post("/predict/one_by_one", json={"text": ["good", "bad"]})

    assert "must be <= 1 for 'one_by_one', this one has 2" in refusal(response)


def test_further_outputs_stand_beside_it(client: FlaskClient) -> None:
    assert ask(client, "sizes_too", "good") == {"sentiment": "positive", "sizes": [4.0, 0.5]}
    assert ask(client, "sizes_only", "good") == {"sizes": [4.0, 0.5]}


def test_scores_with_labels_are_the_confidence(client: FlaskClient) -> None:
    best = {"class": 1, "label": "positive", "confidence": 0.75}
    other = {"class": 0, "label": "negative", "confidence": 0.25}

    assert ask(client, "sure", "good") == {
        "sentiment": "positive", "confidence": 0.75, "top_k": [best, other],
    }  # fmt: skip
    assert ask(client, "scores_only", "good") == {**best, "top_k": [best, other]}


def test_an_onnx_model_of_strings_takes_texts(client: FlaskClient) -> None:
    assert ask(client, "echo", "grün") == {"heard": "grün"}


def test_a_pipeline_s_output_is_called_as_the_config_says(client: FlaskClient) -> None:
    assert ask(client, "contract", "a good film") == {"sentiment": "positive"}
    assert ask(client, "contract", ["bad", "good"]) == {
        "predictions": [{"sentiment": "negative"}, {"sentiment": "positive"}]
    }


def test_a_pipeline_without_a_config_gives_label_and_confidence(client: FlaskClient) -> None:
    found = ask(client, "mood", "a bad film")

    assert (found["label"], found["top_k"][0]["label"]) == ("negative", "negative")
    assert 0.5 < found["confidence"] == found["top_k"][0]["confidence"] < 1
    assert [each["class"] for each in found["top_k"]] == [0, 1]


def test_a_pipeline_takes_version_1_s_instances(client: FlaskClient) -> None:
    response = client.post("/v1/models/mood:predict", json={"instances": ["good", "bad"]})

    rows = answer(response)["predictions"]
    assert [row["label"] for row in rows] == [["positive"], ["negative"]]
    assert rows[0]["probabilities"] == pytest.approx(rows[1]["probabilities"][::-1])


@pytest.mark.parametrize(
    "instances", [["good", "bad"], [["good"], ["bad"]], [{"text": "good"}, {"text": "bad"}]]
)
@pytest.mark.parametrize("model", ["named", "free"])
def test_version_1_takes_texts(client: FlaskClient, model: str, instances: list[Any]) -> None:
    body = answer(client.post(f"/v1/models/{model}:predict", json={"instances": instances}))

    assert body["predictions"] == [["positive"], ["negative"]]


@pytest.mark.parametrize("columns", [["good", "bad"], {"text": ["good", "bad"]}])
def test_version_1_takes_texts_in_columns(client: FlaskClient, columns: Any) -> None:
    body = answer(client.post("/v1/models/named:predict", json={"inputs": columns}))

    assert body["outputs"] == [["positive"], ["negative"]]


def test_a_half_of_a_character_is_no_text(client: FlaskClient) -> None:
    response = client.post(
        "/predict/named", data=b'{"text": "\\ud800"}', content_type="application/json"
    )

    assert response.status_code == 400


# Which model, when none is named.

STRINGS = TensorSpec(name="text", datatype="BYTES", dims=(1,))
NUMBERS = TensorSpec(name="x", datatype="FP32", dims=(4,))
OPTIONAL = TensorSpec(name="top", datatype="INT32", dims=(1,), optional=True)


@pytest.fixture
def empty(settings: Settings) -> FlaskClient:
    return create_app(settings).test_client()


def said(client: FlaskClient) -> str:
    return refusal(client.post("/predict", json={"text": "good"}))


def test_without_any_model_it_says_so(empty: FlaskClient) -> None:
    assert said(empty) == "no model takes text input, because none is served"


def test_without_one_for_texts_it_says_what_the_others_take(
    empty: FlaskClient, settings: Settings
) -> None:
    register(settings, spec("numbers", NUMBERS), spec("pairs", STRINGS, STRINGS))

    assert said(empty) == (
        "no model takes text input: 'numbers' takes tensors, 'pairs' takes tensors"
    )


def test_several_are_listed(empty: FlaskClient, settings: Settings) -> None:
    register(settings, spec("mood", STRINGS), spec("topic", STRINGS, OPTIONAL))

    assert said(empty) == (
        "2 models take text input, name one in the path: /predict/<model> with one of "
        "'mood', 'topic'"
    )


def test_of_many_some_are_listed(empty: FlaskClient, settings: Settings) -> None:
    register(settings, *(spec(f"m{number:02}", STRINGS) for number in range(12)))

    assert said(empty).endswith("'m08', 'm09' and 2 more")


def test_the_only_one_is_asked(empty: FlaskClient, settings: Settings) -> None:
    texts = spec("mood", STRINGS)
    register(settings, texts, spec("numbers", NUMBERS))

    assert empty.post("/predict", json={"text": ["x"] * 33}).json["error"].endswith("has 33")
