"""What a request says of itself has a size: ids, what errors quote, open dimensions."""

from __future__ import annotations

import json
from typing import Any

import pytest
from registered import spec

from api.payloads.infer_request import check_shape
from api.payloads.v2_json import parse_infer
from shared.errors import BadRequest
from shared.model_spec import TensorSpec

LONG = "a" * 100_000


@pytest.mark.parametrize(
    "changes",
    [
        {"name": LONG},
        {"datatype": LONG},
        {"shape": [1] * 100_000},
        {"shape": [LONG]},
        {"parameters": {"binary_data_size": LONG}},
        {"parameters": {"classification": LONG, LONG: None}},
    ],
)
def test_errors_quote_no_more_than_200_characters(changes: dict[str, Any]) -> None:
    tensor = {"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [1.0], **changes}
    model = spec("m", TensorSpec(name="x", datatype="FP32", dims=(1,)))

    with pytest.raises(BadRequest) as refused:
        parse_infer(json.dumps({"inputs": [tensor]}).encode(), model)

    assert len(refused.value.message) < 500


def test_an_id_has_a_kilobyte_at_most() -> None:
    tensor = {"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [1.0]}
    model = spec("m", TensorSpec(name="x", datatype="FP32", dims=(1,)))

    def parsed(name: str) -> str | None:
        return parse_infer(json.dumps({"id": name, "inputs": [tensor]}).encode(), model).id

    assert parsed("ä" * 512) == "ä" * 512
    with pytest.raises(BadRequest, match='"id" is longer than 1024 bytes'):
        parsed("ä" * 512 + "a")


def test_open_dimensions_have_a_bound() -> None:
    words = spec("m", TensorSpec(name="x", datatype="INT64", dims=(-1,)))
    few = words.with_changes(parameters={"max_elements": "100"})

    check_shape((1, 100), few.inputs[0], few, "x")
    check_shape((1, 2**22), words.inputs[0], words, "x")
    for model, length in ((few, 101), (words, 2**22 + 1)):
        with pytest.raises(BadRequest, match=f"{length} elements in a row, 'm' takes at most"):
            check_shape((1, length), model.inputs[0], model, "x")
