"""Plain numbers through `/predict` and v2, answered by the real worker."""

from __future__ import annotations

import json

import numpy as np
import pytest
from flask.testing import FlaskClient
from registered import spec

from api.infer.render import render
from shared.datatypes import NUMPY_TYPES
from shared.messages import AnswerForm, InferResult, Tensor
from shared.model_spec import TensorSpec

MODEL = spec("m", TensorSpec(name="x", datatype="FP32", dims=(2,)))


def test_rows_sent_together_equal_rows_sent_alone(client: FlaskClient) -> None:
    rows = np.random.default_rng(0).normal(size=(5, 16)).round(3).tolist()

    together = client.post("/predict/tiny", json={"input_tensor": rows}).json["prediction"]
    alone = [
        client.post("/predict/tiny", json={"input_tensor": [row]}).json["prediction"][0]
        for row in rows
    ]

    np.testing.assert_allclose(together, alone, atol=1e-5)


@pytest.mark.parametrize("datatype", ["FP16", "BF16", "FP64"])
def test_every_kind_of_float_is_answered_as_numbers(datatype: str) -> None:
    rows = np.array([[0.5, -2.0]], NUMPY_TYPES[datatype])

    answer = render(MODEL, InferResult((Tensor.of("out", rows),)), AnswerForm("tensor"))

    assert json.loads(answer.body)["prediction"] == [[0.5, -2.0]]


def test_strings_are_answered_as_strings_and_what_is_no_text_in_base64() -> None:
    rows = np.array([["é".encode(), b"\xff"]], object)

    answer = render(MODEL, InferResult((Tensor.of("out", rows),)), AnswerForm("tensor"))

    assert json.loads(answer.body)["prediction"] == [["é", {"b64": "/w=="}]]
