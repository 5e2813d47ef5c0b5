"""One value per row: a score from 0 to 1, a logit where the config says so, or the class itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from loaded import spec, tensor

from api.payloads.predictions import describe_rows
from shared.datatypes import NUMPY_TYPES
from shared.errors import BadModelOutput
from shared.messages import InferResult, Tensor
from shared.model_spec import ImageInput, ModelSpec

IMAGE = ImageInput(input="x", height=2, width=2)
WHOLE = ["INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64", "BOOL"]


def model(datatype: str = "FP32", **parameters: str) -> ModelSpec:
    """Describe a picture model of one value per row, whose classes are called "no" and "yes"."""
    output = tensor("y", datatype, 1).model_copy(update={"labels": ("no", "yes", "")})
    found = spec([tensor("x")], [output], **parameters)
    activation = parameters.get("output_activation", "softmax")
    return found.with_changes(
        image=IMAGE, output_activation=activation, label_key=parameters.get("label_key")
    )


def described(spec: ModelSpec, *values: float, shape: tuple[int, ...] = (-1, 1)) -> Any:
    array = np.array(values, NUMPY_TYPES[spec.outputs[0].datatype]).reshape(shape)
    return describe_rows(spec, InferResult((Tensor.of("y", array),)), 3)


def refusal(spec: ModelSpec, *values: float) -> str:
    with pytest.raises(BadModelOutput) as refused:
        described(spec, *values)
    return refused.value.message


@pytest.mark.parametrize("parameters", [{}, {"output_activation": "none"}])
@pytest.mark.parametrize("datatype", ["FP32", "FP64", "FP16", "BF16"])
@pytest.mark.parametrize("shape", [(-1, 1), (-1,), (-1, 1, 1)])
def test_a_score_from_0_to_1_is_that_of_class_1(
    parameters: dict[str, str], datatype: str, shape: tuple[int, ...]
) -> None:
    found = described(model(datatype, **parameters), 0.25, 0.875, 0, 1, shape=shape)

    assert [each["class"] for each in found] == [0, 1, 0, 1]
    assert [each["label"] for each in found] == ["no", "yes", "no", "yes"]
    assert [each["confidence"] for each in found] == [0.75, 0.875, 1.0, 1.0]
    assert found[0]["top_k"][1] == {"class": 1, "label": "yes", "confidence": 0.25}


def test_what_rounding_adds_to_1_is_left_out() -> None:
    [row] = described(model(), np.nextafter(np.float32(1), np.float32(2)))

    assert row["confidence"] == 1.0
    assert [each["confidence"] for each in row["top_k"]] == [1.0, 0.0]


@pytest.mark.parametrize("parameters", [{}, {"output_activation": "none"}])
@pytest.mark.parametrize("score", [-0.01, 1.01, 7.5, -300.0])
def test_a_score_outside_0_to_1_is_the_models_mistake(
    parameters: dict[str, str], score: float
) -> None:
    assert refusal(model(**parameters), 0.5, score) == (
        f"output 'y': the one score of row 1 is {score:g}, expected 0 to 1: "
        "set output_activation to sigmoid if it is a logit"
    )


@pytest.mark.parametrize("datatype", ["FP32", "INT8"])
def test_a_logit_is_one_where_the_config_says_so(datatype: str) -> None:
    found = described(model(datatype, output_activation="sigmoid"), 2, -2)

    assert [each["class"] for each in found] == [1, 0]
    assert [each["confidence"] for each in found] == pytest.approx([0.880797] * 2)


def test_the_softmax_of_one_score_is_no_confidence() -> None:
    message = refusal(model(output_activation="softmax"), -3.0)

    assert message.startswith("output 'y': there is one score per row, of which softmax makes 1")


@pytest.mark.parametrize("datatype", WHOLE)
@pytest.mark.parametrize("parameters", [{}, {"output_activation": "none"}])
def test_a_whole_number_is_the_class(parameters: dict[str, str], datatype: str) -> None:
    assert described(model(datatype, **parameters), 1, 0) == [
        {"class": 1, "label": "yes"},
        {"class": 0, "label": "no"},
    ]


@pytest.mark.parametrize("number", [2, 3, 40, -1, 2**62 + 1])
def test_a_class_without_a_label_is_called_by_its_number(number: int) -> None:
    assert described(model("INT64"), number) == [{"class": number, "label": str(number)}]


def test_the_label_of_a_class_stands_under_its_key() -> None:
    assert described(model("INT64", label_key="mood"), 1) == [{"mood": "yes"}]


def test_a_model_without_a_batch_answers_one_class() -> None:
    spec = model("INT64").with_changes(max_batch_size=0)

    assert described(spec, 1, shape=(1,)) == [{"class": 1, "label": "yes"}]


def test_several_whole_numbers_are_scores() -> None:
    [row] = described(model("UINT8"), 3, 9, 0, shape=(1, 3))

    assert (row["class"], len(row["top_k"])) == (1, 3)
