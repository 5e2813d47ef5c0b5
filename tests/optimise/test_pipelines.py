"""`ferry export` of a joblib file: ONNX that answers as the pipeline, and serves without pickle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from sklearn.ensemble import RandomForestClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from ferry.cli import main
from shared.settings import Settings
from worker.optimise.rows import Batch
from worker.optimise.subjects import load_version
from worker.repository.models import read_model

pytest.importorskip("skl2onnx", reason="the extra [convert] is not installed")
RANDOM = np.random.default_rng(7)
ROWS = RANDOM.normal(size=(60, 3))
CLASSES = (ROWS[:, 0] > 0).astype(int) + (ROWS[:, 1] > 0.5)
WORDS = ["good", "very good", "bad", "so bad", "good place", "bad food"]


@pytest.fixture(autouse=True)
def trusting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Load pickles: whoever exports one made it."""
    monkeypatch.setenv("FERRY_ALLOW_PICKLE", "1")


def export(directory: Path, pipeline: Any, *options: str) -> int:
    file = directory / "model.joblib"
    joblib.dump(pipeline, file)
    models = str(directory / "models")
    return main(["export", str(file), "--models", models, "--name", "m", *options])


def answer(directory: Path, inputs: np.typing.NDArray[Any]) -> dict[str, Any]:
    model = read_model(directory / "models", "m", trusted=())
    assert model.config.backend == "onnxruntime"
    array = inputs.astype({"FP64": "f8", "FP32": "f4"}.get(model.spec.inputs[0].datatype, "O"))
    batch = Batch({model.spec.inputs[0].name: array}, frozenset(), len(array))
    return load_version(model, Settings()).answer(batch)


@pytest.mark.parametrize("labels", [CLASSES, np.array(["a", "b", "c"])[CLASSES]])
def test_classes_and_probabilities_are_those_of_the_pipeline(tmp_path: Path, labels: Any) -> None:
    pipeline = make_pipeline(StandardScaler(), RandomForestClassifier(9, random_state=1))
    pipeline.fit(ROWS, labels)

    assert export(tmp_path, pipeline, "--to", "onnx") == 0

    found = answer(tmp_path, ROWS)
    expected = pipeline.predict(ROWS)
    given = [each.decode() if isinstance(each, bytes) else each for each in found["label"].ravel()]
    assert given == expected.tolist()
    assert np.allclose(found["probabilities"], pipeline.predict_proba(ROWS), atol=1e-6)
    spec = read_model(tmp_path / "models", "m").spec
    assert spec.outputs[1].labels == tuple(map(str, pipeline.classes_))


def test_numbers_and_texts(tmp_path: Path) -> None:
    numbers, texts = tmp_path / "a", tmp_path / "b"
    numbers.mkdir()
    texts.mkdir()
    regression = LinearRegression().fit(ROWS, ROWS @ [1, 2, 3])
    mood = make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(WORDS, [1, 1, 0, 0, 1, 0])

    assert export(numbers, regression) == 0
    assert export(texts, mood) == 0

    assert np.allclose(answer(numbers, ROWS)["prediction"].ravel(), ROWS @ [1, 2, 3])
    asked = np.array([[each.encode()] for each in WORDS], object)
    found = answer(texts, asked)["probabilities"]
    assert np.allclose(found, mood.predict_proba(WORDS), atol=1e-5)


def test_what_cannot_be_converted_is_one_sentence(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = make_pipeline(FunctionTransformer(np.sin), LogisticRegression()).fit(ROWS, CLASSES)

    assert export(tmp_path, odd, "--to", "onnx") == 1
    assert export(tmp_path, odd, "--to", "exported") == 1
    monkeypatch.delenv("FERRY_ALLOW_PICKLE")
    assert export(tmp_path, odd, "--to", "onnx") == 1

    errors = capfd.readouterr().err.splitlines()
    assert len(errors) == 3
    assert "skl2onnx cannot convert it" in errors[0]
    assert "--to onnx is all" in errors[1]
    assert "FERRY_ALLOW_PICKLE=1" in errors[2]
    assert not (tmp_path / "models" / "m").exists()
