"""BYTES of version 1 that are no text: in and out as base64, whatever the model does with them."""

from __future__ import annotations

import json
from base64 import b64encode
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from registered import spec

from api.payloads.v1_json import parse_predict, v1_values
from shared.messages import InferResult, Tensor
from shared.model_spec import TensorSpec

MODEL = spec("bytes", TensorSpec(name="x", datatype="BYTES", dims=(2,)))
NO_TEXT = b"\xff\xfe\x00"


def b64(data: bytes) -> dict[str, str]:
    return {"b64": b64encode(data).decode()}


def parsed(**body: Any) -> np.ndarray[Any, Any]:
    """Return what the model's only input becomes."""
    tokenizers: Any = None  # not asked for this model
    return parse_predict(json.dumps(body).encode(), MODEL, tokenizers)[1][0].array()


def shown(name: str, *elements: bytes) -> Any:
    tensor = Tensor(name, "BYTES", (len(elements),), Tensor.of("", np.array(elements, object)).data)
    return v1_values(InferResult((tensor,)), "predictions")


def test_base64_becomes_the_bytes_it_stands_for() -> None:
    array = parsed(instances=[[b64(NO_TEXT), "text"]])

    assert array.tolist() == [[NO_TEXT, b"text"]]


@given(st.lists(st.tuples(st.binary(), st.binary()), min_size=1, max_size=8))
def test_any_bytes_make_the_round_trip(rows: list[tuple[bytes, bytes]]) -> None:
    array = parsed(inputs=[[b64(one), b64(other)] for one, other in rows])

    assert array.tolist() == [list(row) for row in rows]
    elements = array.ravel().tolist()
    assert shown("y_bytes", *elements) == [b64(each) for each in elements]


@pytest.mark.parametrize(("element", "wanted"), [(b"text", "text"), (NO_TEXT, b64(NO_TEXT))])
def test_only_what_is_no_text_is_answered_in_base64(
    element: bytes, wanted: str | dict[str, str]
) -> None:
    assert shown("y", element, b"") == [wanted, ""]
