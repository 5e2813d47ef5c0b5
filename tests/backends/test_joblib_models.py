"""scikit-learn pipelines: whole batches, strings and numbers, and never without being allowed."""

from __future__ import annotations

import builtins
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from loaded import PLAIN, floats, load, own_imports, spec, tensor, texts
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from shared.errors import BadModel, BadModelOutput
from shared.model_spec import ModelSpec
from worker.backends.base import Backend
from worker.instance.outputs import fitted_outputs

TEXT_INPUT = [tensor("text", "BYTES", 1)]
LABEL = tensor("label", "BYTES", 1)
NUMBERS = np.array([[0.0, 0.0], [1.0, 1.0], [0.0, 0.2], [0.9, 1.0]])


@pytest.fixture(autouse=True)
def imports() -> Iterator[None]:
    with own_imports():
        yield


@pytest.fixture
def mood(tmp_path: Path) -> Path:
    """A pipeline from texts to "bad" and "good"."""
    pipeline = make_pipeline(CountVectorizer(), LogisticRegression())
    pipeline.fit(["good film", "bad film", "good food", "bad food"], ["good", "bad"] * 2)
    joblib.dump(pipeline, tmp_path / "model.joblib")
    return tmp_path / "model.joblib"


@pytest.fixture
def flowers(tmp_path: Path) -> Path:
    """A pipeline from two numbers to 0 and 1."""
    pipeline = make_pipeline(StandardScaler(), LogisticRegression())
    pipeline.fit(NUMBERS, [0, 1, 0, 1])
    joblib.dump(pipeline, tmp_path / "model.joblib")
    return tmp_path / "model.joblib"


def allowed(described: ModelSpec, file: Path) -> Backend:
    return load("joblib", described, file, allow_pickle=True)


def test_without_being_allowed_the_file_is_not_opened(tmp_path: Path) -> None:
    class Marker:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    joblib.dump(Marker(), tmp_path / "model.joblib")

    with pytest.raises(BadModel, match=r"runs whatever code is in it, so set FERRY_ALLOW_PICKLE=1"):
        load("joblib", spec(TEXT_INPUT, [LABEL]), tmp_path / "model.joblib")

    assert not (tmp_path / "ran").exists()


def test_strings_go_in_and_labels_come_out_in_one_call(
    mood: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = allowed(spec(TEXT_INPUT, [LABEL]), mood)
    calls: list[int] = []
    predict = LogisticRegression.predict

    def counted(self: LogisticRegression, x: Any) -> Any:
        calls.append(x.shape[0])
        return predict(self, x)

    monkeypatch.setattr(LogisticRegression, "predict", counted)

    outputs = backend.forward({"text": texts("a good one", "bad", "good good")}, PLAIN)

    assert outputs["label"].tolist() == [[b"good"], [b"bad"], [b"good"]]
    assert calls == [3]


def test_each_output_is_the_method_that_the_config_names(mood: Path) -> None:
    outputs = [LABEL, tensor("scores", "FP32", 2), tensor("margin", "FP64", 1)]
    methods = "scores=predict_proba, margin = decision_function"
    backend = allowed(spec(TEXT_INPUT, outputs, methods=methods), mood)

    found = backend.forward({"text": texts("good", "bad")}, PLAIN)

    assert found["label"].tolist() == [[b"good"], [b"bad"]]
    assert found["scores"].dtype == np.float32
    assert found["scores"].argmax(1).tolist() == [1, 0]
    assert found["margin"].shape == (2, 1)
    assert found["margin"][0, 0] > 0 > found["margin"][1, 0]


def test_numbers_go_in_and_a_batch_equals_its_rows(flowers: Path) -> None:
    described = spec(
        [tensor("x")], [tensor("kind", "INT64", 1), tensor("p")], methods="p=predict_proba"
    )
    backend = allowed(described, flowers)
    x = NUMBERS.astype(np.float32)

    together = backend.forward({"x": x}, PLAIN)
    alone = [backend.forward({"x": x[i : i + 1]}, PLAIN) for i in range(4)]

    assert together["kind"].tolist() == [[0], [1], [0], [1]]
    np.testing.assert_allclose(together["p"], np.concatenate([each["p"] for each in alone]))


@pytest.mark.parametrize("is_writable", [True, False])
def test_each_method_gets_what_was_sent_though_a_step_writes_into_it(
    tmp_path: Path, is_writable: bool
) -> None:
    pipeline = make_pipeline(StandardScaler(copy=False), LogisticRegression())
    pipeline.fit(NUMBERS.copy(), [0, 1, 0, 1])
    joblib.dump(pipeline, tmp_path / "model.joblib")
    described = spec(
        [tensor("x", "FP64")],
        [tensor("label", "INT64", 1), tensor("scores", "FP64"), tensor("logs", "FP64")],
        methods="scores=predict_proba, logs=predict_log_proba",
    )
    given = NUMBERS.copy()
    given.flags.writeable = is_writable

    answer = allowed(described, tmp_path / "model.joblib").forward({"x": given}, PLAIN)

    np.testing.assert_allclose(answer["scores"], pipeline.predict_proba(NUMBERS.copy()))
    np.testing.assert_allclose(np.exp(answer["logs"]), answer["scores"])
    assert given.tolist() == NUMBERS.tolist()


def test_a_sparse_answer_of_transform_comes_out_dense(tmp_path: Path) -> None:
    joblib.dump(CountVectorizer().fit(["a1 b1", "b1 c1"]), tmp_path / "model.joblib")
    described = spec(TEXT_INPUT, [tensor("counts", "FP32", 3)], methods="counts=transform")
    backend = allowed(described, tmp_path / "model.joblib")

    found = backend.forward({"text": texts("c1 c1 a1")}, PLAIN)["counts"]

    assert found.tolist() == [[1.0, 0.0, 2.0]]


def test_a_number_that_does_not_fit_the_declared_type_is_an_error(flowers: Path) -> None:
    described = spec([tensor("x")], [tensor("p", "INT32", 2)], methods="p=predict_proba")
    backend = allowed(described, flowers)

    with pytest.raises(BadModelOutput, match="output 'p': the pipeline gave float"):
        backend.forward({"x": floats([0, 0])}, PLAIN)


@pytest.mark.parametrize(
    ("inputs", "methods", "message"),
    [
        ([tensor("a"), tensor("b")], "", "a pipeline has one input, the config declares 2"),
        ([tensor("x")], "label=fit", "methods 'label=fit': expected one of"),
        ([tensor("x")], "other=predict", "methods 'other=predict': expected one of"),
        ([tensor("x")], "label=transform", "output 'label': the file's Pipeline has no transform"),
    ],
)
def test_what_a_pipeline_cannot_do_is_refused(
    flowers: Path, inputs: list[Any], methods: str, message: str
) -> None:
    with pytest.raises(BadModel, match=message):
        allowed(spec(inputs, [LABEL], methods=methods), flowers)


def test_without_scikit_learn_the_reason_says_what_to_install(
    flowers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "worker.backends.joblib_pipeline", raising=False)
    really = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.partition(".")[0] == "sklearn":
            raise ModuleNotFoundError("No module named 'sklearn'", name="sklearn")
        return really(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)

    with pytest.raises(BadModel, match=r"needs sklearn, .* with its extra \[sklearn\]"):
        allowed(spec([tensor("x")], [LABEL]), flowers)


def test_other_numbers_than_the_pipeline_was_fitted_to_are_refused(flowers: Path) -> None:
    with pytest.raises(BadModel, match=r"'x': the file's Pipeline takes 2 features, .* dims \[3\]"):
        allowed(spec([tensor("x", "FP32", 3)], [LABEL]), flowers)


class Records:
    """Predicts what is no text."""

    def predict(self, rows: list[str]) -> list[dict[str, float]]:
        return [{row: 0.5} for row in rows]


def test_objects_do_not_pass_as_texts(tmp_path: Path) -> None:
    joblib.dump(Records(), tmp_path / "model.joblib")
    described = spec(TEXT_INPUT, [LABEL])
    backend = allowed(described, tmp_path / "model.joblib")

    outputs = backend.forward({"text": texts("good")}, PLAIN)

    with pytest.raises(BadModelOutput, match=r"output 'label': Python objects \(dict\), the conf"):
        fitted_outputs(outputs, described, 1)


def test_numbers_are_texts_where_the_config_says_so(flowers: Path) -> None:
    described = spec([tensor("x", "FP32", 2)], [LABEL])

    outputs = allowed(described, flowers).forward({"x": floats([0, 0], [1, 1])}, PLAIN)

    assert fitted_outputs(outputs, described, 2)["label"].tolist() == [[b"0"], [b"1"]]
