"""Few numbers in JSON are packed without numpy, to the same bytes, and all else is numpy's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from api.payloads.json_arrays import STRUCT_CODES, small_numbers, to_array
from shared.datatypes import NUMPY_TYPES
from shared.errors import BadRequest


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
