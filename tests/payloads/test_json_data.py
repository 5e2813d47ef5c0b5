"""Data in JSON may be nested as Triton reads it; few numbers are packed without numpy."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from registered import spec

from api.payloads.json_arrays import STRUCT_CODES, small_numbers, to_array
from api.payloads.v2_json import parse_infer
from shared.datatypes import NUMPY_TYPES
from shared.errors import BadRequest
from shared.messages import Tensor
from shared.model_spec import TensorSpec


def parsed(data: Any, shape: tuple[int, ...], datatype: str = "INT32") -> Tensor:
    dims = (-1,) * (len(shape) - 1)
    item = {"name": "x", "shape": shape, "datatype": datatype, "data": data}
    model = spec("m", TensorSpec(name="x", datatype=datatype, dims=dims))
    return parse_infer(json.dumps({"inputs": [item]}).encode(), model).inputs[0]


def refusal(*arguments: Any) -> str:
    with pytest.raises(BadRequest) as refused:
        parsed(*arguments)
    return str(refused.value)


def wrapped(value: Any, levels: int) -> Any:
    for _ in range(levels):
        value = [value]
    return value


# Nested or flat.


@pytest.mark.parametrize(
    ("data", "shape"),
    [
        ([1, 2, 3, 4], (1, 4)),
        ([1, 2, 3, 4], (2, 2)),
        ([[1, 2], [3, 4]], (2, 2)),
        ([[[1, 2], [3, 4]]], (1, 4)),
        ([[[1], [2]], [[3], [4]]], (2, 2)),
        ([[[1], [2, 3]], [[4]]], (2, 2)),
        ([[[], [1, 2]], [], [[3, 4]]], (2, 2)),
        ([[1, 2], [3, 4]], (1, 2, 2)),
        ([[1, 2], [3, 4]], (4,)),
        (wrapped([1, 2, 3, 4], 99), (1, 4)),
        ([wrapped(1, 99), wrapped(2, 99), wrapped(3, 99), wrapped(4, 99)], (2, 2)),
    ],
    ids=lambda value: str(value)[:30],
)
@pytest.mark.parametrize("datatype", ["INT32", "FP32", "UINT64"])
def test_numbers_are_read_in_their_order(data: Any, shape: tuple[int, ...], datatype: str) -> None:
    tensor = parsed(data, shape, datatype)

    assert tensor.shape == shape
    assert tensor.array().ravel().tolist() == [1, 2, 3, 4]


def test_many_numbers_are_read_in_their_order() -> None:
    numbers = np.arange(6000)

    tensor = parsed(numbers.reshape(2, 3, 10, 100).tolist(), (2, 3000))

    assert np.array_equal(tensor.array().ravel(), numbers)


def test_strings_and_booleans_are_read_in_their_order() -> None:
    assert parsed([[["a"], ["bc"]]], (1, 2), "BYTES").array().tolist() == [[b"a", b"bc"]]
    assert parsed([[[True], [False]]], (1, 2), "BOOL").array().tolist() == [[True, False]]


@pytest.mark.parametrize(
    ("data", "shape", "message"),
    [
        ([[1, 2], [3, 4]], (1, 4), "data is nested as [2, 2], not as shape [1, 4]"),
        ([[[1, 2], [3, 4]]], (1, 3), "data has 4 elements, shape [1, 3] wants 3"),
        ([[[1], 2]], (1, 2), "the lists of data differ in depth"),
        ([[[1], [[2]]]], (1, 2), "data"),
        ([[["ab"], "cd"]], (1, 3), "the lists of data differ in depth"),
        ([[[True], [1]]], (1, 2), "data has booleans where numbers of INT32 belong"),
        ([[["1"]]], (1, 1), "data has strings where numbers of INT32 belong"),
        ([[{"a": 1}]], (1,), "data"),
        (wrapped(1, 101), (1, 1), "JSON nesting depth exceeds maximum allowed limit (100)"),
        (wrapped(1, 900), (1, 1), "JSON nesting depth exceeds maximum allowed limit (100)"),
        ([[], []], (1,), "data has 0 elements"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_is_not_a_tensor_is_refused(data: Any, shape: tuple[int, ...], message: str) -> None:
    assert message in refusal(data, shape)


# Few numbers, to the same bytes as numpy's.


@pytest.mark.parametrize("datatype", sorted(STRUCT_CODES))
def test_few_numbers_become_what_numpy_makes_of_them(datatype: str) -> None:
    data = [0, 1, 100] if "F" not in datatype else [0.1, -1.5, 3, 1e-40, 2**60]

    packed = small_numbers(data, datatype, len(data))

    assert packed == to_array(data, datatype, "here").tobytes()


@pytest.mark.parametrize(
    ("datatype", "data"),
    [
        ("FP32", [[1.0], [2.0]]),
        ("FP32", [1.0, "a"]),
        ("FP32", [1.0, None]),
        ("FP32", [1e39, 1.0]),
        ("FP32", [float("inf"), 1.0]),
        ("FP64", [10**400, 1.0]),
        ("INT8", [1, 128]),
        ("INT8", [1, 1.5]),
        ("UINT64", [1, -1]),
        ("INT32", [1.0, 2]),
        ("BOOL", [True, False]),
        ("BYTES", ["a", "b"]),
        ("FP32", [1.0]),
        ("FP32", {"a": 1.0, "b": 2.0}),
    ],
)
def test_what_is_not_plainly_right_is_left_to_numpy(datatype: str, data: Any) -> None:
    assert small_numbers(data, datatype, 2) is None


def test_many_numbers_are_left_to_numpy() -> None:
    assert small_numbers([1.0] * 300, "FP32", 300) is None


@pytest.mark.parametrize("datatype", ["FP32", "INT8"])
def test_numbers_out_of_range_are_refused_in_the_end(datatype: str) -> None:
    largest = float(np.finfo(np.float32).max) * 10 if datatype == "FP32" else 2**8

    assert small_numbers([largest], datatype, 1) is None
    with pytest.raises(BadRequest, match=r"too large|out of the range"):
        to_array([largest], datatype, "here")
    assert NUMPY_TYPES[datatype].itemsize in (1, 4)
