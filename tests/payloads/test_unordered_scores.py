"""Scores without an order have no best class: the model's mistake, and no answer for a client."""

from __future__ import annotations

import numpy as np
import pytest
from loaded import spec, tensor

from api.payloads.classification import classified
from api.payloads.predictions import describe_rows
from shared.datatypes import NUMPY_TYPES, Array
from shared.errors import BadModelOutput
from shared.messages import InferResult, Tensor
from shared.model_spec import ModelSpec

NAN, INF = float("nan"), float("inf")


def model(activation: str = "softmax", datatype: str = "FP32") -> ModelSpec:
    found = spec([tensor("x")], [tensor("y", datatype, -1)], output_activation=activation)
    return found.model_copy(update={"output_activation": activation})


def scores(*rows: list[float], datatype: str = "FP32") -> Tensor:
    return Tensor.of("y", np.array(rows, NUMPY_TYPES[datatype]))


def described(spec: ModelSpec, array: Tensor) -> list[dict[str, object]]:
    return describe_rows(spec, InferResult((array,)), 3)


@pytest.mark.parametrize(
    ("activation", "row"),
    [
        ("softmax", [NAN, 1.0]),
        ("softmax", [1.0, NAN]),
        ("softmax", [INF, 1.0]),
        ("softmax", [-INF, -INF]),
        ("softmax", [NAN]),
        ("sigmoid", [1.0, NAN]),
        ("sigmoid", [NAN]),
        ("none", [NAN, 1.0]),
        ("none", [INF, 1.0]),
        ("none", [-INF, 1.0]),
    ],
)
@pytest.mark.parametrize("datatype", ["FP32", "FP64", "FP16", "BF16"])
def test_no_class_is_the_best_of_what_has_no_order(
    activation: str, row: list[float], datatype: str
) -> None:
    with pytest.raises(BadModelOutput) as caught:
        described(model(activation, datatype), scores([0.0] * len(row), row, datatype=datatype))

    assert caught.value.message.startswith("output 'y': the scores of row 1 hold NaN or infinities")


@pytest.mark.parametrize(
    ("activation", "row", "confidences"),
    [("softmax", [-INF, 2.0], [1.0, 0.0]), ("sigmoid", [INF, -INF], [1.0, 0.0])],
)
def test_an_infinity_that_is_a_certainty_is_one(
    activation: str, row: list[float], confidences: list[float]
) -> None:
    [found] = described(model(activation), scores(row))

    ranked = found["top_k"]
    assert isinstance(ranked, list)
    assert [each["confidence"] for each in ranked] == pytest.approx(confidences, abs=1e-6)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid", "none"])
def test_no_scores_at_all_are_refused(activation: str) -> None:
    empty: Array = np.zeros((2, 0), np.float32)

    with pytest.raises(BadModelOutput, match="output 'y': there are no scores"):
        described(model(activation), Tensor.of("y", empty))


@pytest.mark.parametrize("datatype", ["FP32", "FP64", "FP16", "BF16"])
def test_nan_is_not_classified(datatype: str) -> None:
    array = scores([1.0, 2.0], [NAN, 1.0], datatype=datatype)

    with pytest.raises(BadModelOutput, match="output 'y': NaN among its values"):
        classified(array, 1, model("none", datatype))


def test_infinities_are_classified_as_they_are() -> None:
    found = classified(scores([-INF, INF, 1.0]), 3, model()).array().ravel().tolist()

    assert found == [b"inf:1", b"1.000000:2", b"-inf:0"]
