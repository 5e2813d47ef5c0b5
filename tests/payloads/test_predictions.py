"""How outputs are told: scores need an order, one value is a score, a logit, or the class."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from loaded import spec, tensor

from api.payloads.classification import classified
from api.payloads.predictions import describe_rows
from shared.datatypes import NUMPY_TYPES, Array
from shared.errors import BadModelOutput
from shared.messages import InferResult, Tensor
from shared.model_spec import ImageInput, ModelSpec

NAN, INF = float("nan"), float("inf")
IMAGE = ImageInput(input="x", height=2, width=2)
WHOLE = ["INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64", "BOOL"]


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


# One value per row.


def one_value(datatype: str = "FP32", **parameters: str) -> ModelSpec:
    """Describe a picture model of one value per row, whose classes are called "no" and "yes"."""
    output = tensor("y", datatype, 1).model_copy(update={"labels": ("no", "yes", "")})
    found = spec([tensor("x")], [output], **parameters)
    activation = parameters.get("output_activation", "softmax")
    return found.with_changes(
        image=IMAGE, output_activation=activation, label_key=parameters.get("label_key")
    )


def told(spec: ModelSpec, *values: float, shape: tuple[int, ...] = (-1, 1)) -> Any:
    array = np.array(values, NUMPY_TYPES[spec.outputs[0].datatype]).reshape(shape)
    return describe_rows(spec, InferResult((Tensor.of("y", array),)), 3)


def refusal(spec: ModelSpec, *values: float) -> str:
    with pytest.raises(BadModelOutput) as refused:
        told(spec, *values)
    return refused.value.message


@pytest.mark.parametrize("parameters", [{}, {"output_activation": "none"}])
@pytest.mark.parametrize("datatype", ["FP32", "FP64", "FP16", "BF16"])
@pytest.mark.parametrize("shape", [(-1, 1), (-1,), (-1, 1, 1)])
def test_a_score_from_0_to_1_is_that_of_class_1(
    parameters: dict[str, str], datatype: str, shape: tuple[int, ...]
) -> None:
    found = told(one_value(datatype, **parameters), 0.25, 0.875, 0, 1, shape=shape)

    assert [each["class"] for each in found] == [0, 1, 0, 1]
    assert [each["label"] for each in found] == ["no", "yes", "no", "yes"]
    assert [each["confidence"] for each in found] == [0.75, 0.875, 1.0, 1.0]
    assert found[0]["top_k"][1] == {"class": 1, "label": "yes", "confidence": 0.25}


def test_what_rounding_adds_to_1_is_left_out() -> None:
    [row] = told(one_value(), np.nextafter(np.float32(1), np.float32(2)))

    assert row["confidence"] == 1.0
    assert [each["confidence"] for each in row["top_k"]] == [1.0, 0.0]


@pytest.mark.parametrize("parameters", [{}, {"output_activation": "none"}])
@pytest.mark.parametrize("score", [-0.01, 1.01, 7.5, -300.0])
def test_a_score_outside_0_to_1_is_the_models_mistake(
    parameters: dict[str, str], score: float
) -> None:
    assert refusal(one_value(**parameters), 0.5, score) == (
        f"output 'y': the one score of row 1 is {score:g}, expected 0 to 1: "
        "set output_activation to sigmoid if it is a logit"
    )


@pytest.mark.parametrize("datatype", ["FP32", "INT8"])
def test_a_logit_is_one_where_the_config_says_so(datatype: str) -> None:
    found = told(one_value(datatype, output_activation="sigmoid"), 2, -2)

    assert [each["class"] for each in found] == [1, 0]
    assert [each["confidence"] for each in found] == pytest.approx([0.880797] * 2)


def test_the_softmax_of_one_score_is_no_confidence() -> None:
    message = refusal(one_value(output_activation="softmax"), -3.0)

    assert message.startswith("output 'y': there is one score per row, of which softmax makes 1")


@pytest.mark.parametrize("datatype", WHOLE)
@pytest.mark.parametrize("parameters", [{}, {"output_activation": "none"}])
def test_a_whole_number_is_the_class(parameters: dict[str, str], datatype: str) -> None:
    assert told(one_value(datatype, **parameters), 1, 0) == [
        {"class": 1, "label": "yes"},
        {"class": 0, "label": "no"},
    ]


@pytest.mark.parametrize("number", [2, 3, 40, -1, 2**62 + 1])
def test_a_class_without_a_label_is_called_by_its_number(number: int) -> None:
    assert told(one_value("INT64"), number) == [{"class": number, "label": str(number)}]


def test_the_label_of_a_class_stands_under_its_key() -> None:
    assert told(one_value("INT64", label_key="mood"), 1) == [{"mood": "yes"}]


def test_a_model_without_a_batch_answers_one_class() -> None:
    spec = one_value("INT64").with_changes(max_batch_size=0)

    assert told(spec, 1, shape=(1,)) == [{"class": 1, "label": "yes"}]


def test_several_whole_numbers_are_scores() -> None:
    [row] = told(one_value("UINT8"), 3, 9, 0, shape=(1, 3))

    assert (row["class"], len(row["top_k"])) == (1, 3)
