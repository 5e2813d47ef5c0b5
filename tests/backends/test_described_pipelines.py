"""A scikit-learn file says what it takes and gives; a config is needed where it cannot."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from loaded import PLAIN, floats, load_repository, texts
from sklearn.cluster import KMeans
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier
from sklearn.feature_extraction.text import HashingVectorizer, TfidfVectorizer
from sklearn.linear_model import LinearRegression, LogisticRegression, SGDClassifier
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler

from shared.errors import BadModel
from shared.model_spec import TensorSpec
from worker.backends.joblib_pipeline import described
from worker.repository.models import read_model

TEXTS = ["good film", "bad film", "fine food", "awful food"] * 3
MOODS = ["positive", "negative"] * 6
NUMBERS = np.random.default_rng(3).normal(size=(12, 4))
KINDS = [0, 1, 2] * 4
TEXT, FEATURES = ["text", "STRING", [-1, 1]], ["features", "FP64", [-1, 4]]
LABEL, KIND = ["label", "STRING", [-1, 1]], ["label", "INT64", [-1, 1]]


def mood(first: Any = None) -> Any:
    return make_pipeline(first or TfidfVectorizer(), LogisticRegression()).fit(TEXTS, MOODS)


def lowered(items: Any) -> Any:
    return [item.lower() for item in items]


def shout(items: Any) -> Any:
    return [item.upper() for item in items]


def cleaned() -> Any:
    steps = (FunctionTransformer(lowered), TfidfVectorizer(), LogisticRegression())
    return make_pipeline(*steps).fit(TEXTS, MOODS)


def searched() -> Any:
    return GridSearchCV(mood(), {"logisticregression__C": [1.0, 2.0]}, cv=2).fit(TEXTS, MOODS)


def by_number() -> Any:
    columns = ColumnTransformer(
        [("scaled", StandardScaler(), [0, 1]), ("rest", "passthrough", [2])]
    )
    return make_pipeline(columns, LogisticRegression()).fit(NUMBERS, KINDS)


CLASSIFIERS: dict[str, tuple[Any, list[Any], list[Any], list[str]]] = {
    "texts": (mood, TEXT, LABEL, ["negative", "positive"]),
    "hashed texts": (lambda: mood(HashingVectorizer()), TEXT, LABEL, ["negative", "positive"]),
    "cleaned texts": (cleaned, TEXT, LABEL, ["negative", "positive"]),
    "searched": (searched, TEXT, LABEL, ["negative", "positive"]),
    "forest": (
        lambda: RandomForestClassifier(5).fit(NUMBERS, KINDS), FEATURES, KIND, ["0", "1", "2"]
    ),
    "scaled": (
        lambda: make_pipeline(StandardScaler(), LogisticRegression()).fit(NUMBERS, MOODS),
        FEATURES, LABEL, ["negative", "positive"],
    ),
    "columns by number": (by_number, FEATURES, KIND, ["0", "1", "2"]),
}  # fmt: skip


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_classifier_gives_a_label_and_probabilities(name: str) -> None:
    made, inputs, label, labels = CLASSIFIERS[name]

    found = described(made())

    assert found["inputs"] == [inputs]
    assert found["outputs"] == [label, ["probabilities", "FP64", [-1, len(labels)]]]
    assert found["parameters"]["methods"] == "probabilities=predict_proba"
    assert json.loads(found["parameters"]["labels:probabilities"]) == labels


OTHERS: dict[str, tuple[Any, list[Any]]] = {
    "no probabilities": (lambda: SGDClassifier().fit(NUMBERS, KINDS), KIND),
    "regression": (
        lambda: LinearRegression().fit(NUMBERS, NUMBERS[:, 0]), ["prediction", "FP64", [-1, 1]]
    ),
    "two numbers": (
        lambda: LinearRegression().fit(NUMBERS, NUMBERS[:, :2]), ["prediction", "FP64", [-1, 2]]
    ),
    "two classes each": (
        lambda: RandomForestClassifier(3).fit(NUMBERS, list(zip(KINDS, KINDS, strict=True))),
        ["label", "INT64", [-1, 2]],
    ),
    "clusters": (
        lambda: KMeans(2, n_init=1).fit(NUMBERS), ["prediction", "INT64", [-1, 1]]
    ),
    "transformer": (lambda: PCA(2).fit(NUMBERS), ["transformed", "FP64", [-1, 2]]),
    "vectorizer": (lambda: TfidfVectorizer().fit(TEXTS), ["transformed", "FP64", [-1, 6]]),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_others_give_what_they_predict_or_make(name: str) -> None:
    made, output = OTHERS[name]

    assert described(made())["outputs"] == [output]


def named_columns() -> Any:
    columns = ColumnTransformer([("scaled", StandardScaler(), ["age"])])
    columns.transformers_, columns.n_features_in_ = [], 2  # as fitted to a table, without pandas
    return columns


def words_among_numbers() -> Any:
    rows = np.array([["red", 1], ["blue", 2]] * 3, object)
    columns = ColumnTransformer([("words", OneHotEncoder(), [0]), ("rest", "passthrough", [1])])
    return make_pipeline(columns, LogisticRegression()).fit(rows, [0, 1] * 3)


@pytest.mark.parametrize("made", [named_columns, words_among_numbers])
def test_a_table_is_no_row_of_numbers(made: Any) -> None:
    with pytest.raises(ValueError, match=r"fitted to a table .*: write a model.py"):
        described(made())


class Picky:
    def predict(self, rows: Any) -> Any:
        raise RuntimeError("only real texts")


def test_what_refuses_made_up_rows_is_told() -> None:
    with pytest.raises(ValueError, match=r"Picky does not answer .* texts \(only real texts\)"):
        described(Picky())


# In a repository.


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of a model from texts to moods, without a config; pickles are allowed."""
    monkeypatch.setenv("FERRY_ALLOW_PICKLE", "1")
    (tmp_path / "mood" / "1").mkdir(parents=True)
    joblib.dump(mood(), tmp_path / "mood" / "1" / "model.joblib")
    return tmp_path / "mood"


def test_without_a_config_it_completes_itself(model: Path) -> None:
    spec = read_model(model.parent, "mood").spec

    assert spec.inputs == (TensorSpec(name="text", datatype="BYTES", dims=(1,)),)
    label, probabilities = spec.outputs
    assert label == TensorSpec(name="label", datatype="BYTES", dims=(1,))
    assert (probabilities.dims, probabilities.labels) == ((2,), ("negative", "positive"))
    assert (spec.max_batch_size, spec.input_kind) == (64, "text")
    backend = load_repository(model.parent, "mood", allow_pickle=True)
    found = backend.forward({"text": texts("good film", "awful")}, PLAIN)
    assert found["label"].tolist() == [[b"positive"], [b"negative"]]
    assert found["probabilities"].sum(axis=1).tolist() == pytest.approx([1, 1])


@pytest.mark.usefixtures("forked")
def test_an_output_of_the_config_keeps_its_name(model: Path) -> None:
    (model / "config.pbtxt").write_text(
        'output [ { name: "sentiment" data_type: TYPE_STRING dims: [1] },'
        ' { name: "scores" data_type: TYPE_FP32 dims: [2] } ]'
    )

    spec = read_model(model.parent, "mood").spec
    backend = load_repository(model.parent, "mood", allow_pickle=True)
    found = backend.forward({"text": texts("good film")}, PLAIN)

    assert [output.name for output in spec.outputs] == ["sentiment", "scores"]
    assert spec.inputs[0].name == "text"
    assert found["sentiment"].tolist() == [[b"positive"]]
    assert found["scores"].shape == (1, 2)


@pytest.mark.usefixtures("forked")
def test_it_is_not_loaded_where_pickles_are_not_allowed(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FERRY_ALLOW_PICKLE")

    with pytest.raises(BadModel, match=r"model.joblib: a pickled sklearn.pipeline.Pipeline: load"):
        read_model(model.parent, "mood")


@pytest.mark.usefixtures("forked")
def test_functions_of_the_saving_script_are_found_beside_it(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = "def shout(items):\n    return [item.upper() for item in items]\n"
    (model / "1" / "steps.py").write_text(source)
    monkeypatch.setattr(sys.modules["__main__"], "shout", shout, raising=False)
    monkeypatch.setattr(shout, "__module__", "__main__")
    steps = (FunctionTransformer(shout), TfidfVectorizer(), LogisticRegression())
    joblib.dump(make_pipeline(*steps).fit(TEXTS, MOODS), model / "1" / "model.joblib")
    monkeypatch.delattr(sys.modules["__main__"], "shout")

    backend = load_repository(model.parent, "mood", allow_pickle=True)

    assert backend.forward({"text": texts("awful food")}, PLAIN)["label"].tolist() == [
        [b"negative"]
    ]


@pytest.mark.usefixtures("forked")
def test_another_label_file_counts_and_bad_labels_are_named(model: Path) -> None:
    (model / "config.pbtxt").write_text(
        'parameters { key: "labels:probabilities" value { string_value: "[1, 2]" } }'
    )

    with pytest.raises(BadModel, match=r"labels:probabilities: expected a JSON list of strings"):
        read_model(model.parent, "mood")


@pytest.mark.usefixtures("forked")
def test_numbers_go_in_as_they_are(model: Path) -> None:
    joblib.dump(LinearRegression().fit(NUMBERS, NUMBERS[:, 1]), model / "1" / "model.joblib")

    backend = load_repository(model.parent, "mood", allow_pickle=True)

    found = backend.forward({"features": floats([1, 2, 3, 4]).astype(np.float64)}, PLAIN)
    assert found["prediction"].tolist() == [[pytest.approx(2.0)]]
