"""A model's answer is fitted to the outputs that its config declares, or refused in a sentence."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from loaded import spec, tensor

from shared.datatypes import NUMPY_TYPES, Array
from shared.errors import BadModelOutput
from shared.model_spec import TensorSpec
from worker.instance.outputs import fitted_outputs

IN = [tensor("x")]
SIZES = st.lists(st.sampled_from([1, 1, 2, 3]), max_size=4).map(tuple)


def declared(*dims: int, datatype: str = "FP32") -> TensorSpec:
    return TensorSpec(name="y", datatype=datatype, dims=dims)


def fit(array: Array, output: TensorSpec, rows: int = 3, *, max_batch_size: int = 8) -> Array:
    described = spec(IN, [output], max_batch_size)
    return fitted_outputs({"y": array}, described, rows)["y"]


def refusal(array: Array, output: TensorSpec, rows: int = 3, *, max_batch_size: int = 8) -> str:
    with pytest.raises(BadModelOutput) as caught:
        fit(array, output, rows, max_batch_size=max_batch_size)
    return caught.value.message


def counted(*shape: int) -> Array:
    return np.arange(prod(shape), dtype=np.float32).reshape(shape)


@pytest.mark.parametrize(
    ("got", "dims", "rows", "seen"),
    [
        ((3,), (1,), 3, (3, 1)),
        ((3,), (-1,), 3, (3, 1)),
        ((3, 1), (1, 1), 3, (3, 1, 1)),
        ((3, 2), (1, 2), 3, (3, 1, 2)),
        ((3, 2), (2, 1), 3, (3, 2, 1)),
        ((3, 1, 2), (2,), 3, (3, 2)),
        ((3, 2, 1, 1), (2,), 3, (3, 2)),
        ((1, 3, 2), (2,), 3, (3, 2)),
        ((), (1,), 1, (1, 1)),
        ((2,), (2,), 1, (1, 2)),
        ((1, 5), (5,), 1, (1, 5)),
        ((0, 2), (2,), 0, (0, 2)),
        ((0,), (1,), 0, (0, 1)),
    ],
)
def test_dimensions_of_one_at_the_edges_of_a_row_are_put_right(
    got: tuple[int, ...], dims: tuple[int, ...], rows: int, seen: tuple[int, ...]
) -> None:
    array = counted(*got)

    fitting = fit(array, declared(*dims), rows)

    assert fitting.shape == seen
    np.testing.assert_array_equal(fitting.ravel(), array.ravel())


@pytest.mark.parametrize(
    ("got", "dims", "seen"),
    [((), (1,), (1,)), ((2,), (1, 2), (1, 2)), ((1, 2, 1), (2,), (2,)), ((1,), (-1,), (1,))],
)
def test_without_a_batch_dimension_the_whole_shape_has_edges(
    got: tuple[int, ...], dims: tuple[int, ...], seen: tuple[int, ...]
) -> None:
    assert fit(counted(*got), declared(*dims), max_batch_size=0).shape == seen


@pytest.mark.parametrize(
    ("got", "dims", "rows"),
    [
        ((3, 3), (4,), 3),
        ((3, 2, 2), (4,), 3),  # the same number of elements, but nothing of size 1
        ((3, 1, 2), (2, 1), 3),
        ((3, 2), (-1, -1), 3),  # [2, 1] as well as [1, 2]
        ((3, 2, 1, 2), (2, 2), 3),
        ((1, 2), (-1, -1), 1),  # a row of [2], or an answer without its batch dimension
    ],
)
def test_another_shape_is_told_beside_the_declared_one(
    got: tuple[int, ...], dims: tuple[int, ...], rows: int
) -> None:
    expected = f"output 'y': shape {list(got)}, the config declares {[-1, *dims]}"

    assert refusal(counted(*got), declared(*dims), rows) == expected


@pytest.mark.parametrize(
    ("got", "dims"), [((), (1,)), ((1, 2), (2,)), ((6,), (2,)), ((2, 3), (2,))]
)
def test_other_rows_than_went_in_are_told(got: tuple[int, ...], dims: tuple[int, ...]) -> None:
    said = refusal(counted(*got), declared(*dims), 3)

    assert said == (
        f"output 'y': shape {list(got)} does not have one row for each of the 3 rows that went "
        f"in, the config declares {[-1, *dims]}"
    )


@given(SIZES, st.lists(st.sampled_from([1, 2, 3, -1]), min_size=1, max_size=4), st.integers(0, 3))
def test_nothing_but_dimensions_of_one_ever_changes(
    got: tuple[int, ...], dims: list[int], rows: int
) -> None:
    array = counted(*got)
    try:
        found = fit(array, declared(*dims), rows)
    except BadModelOutput:
        assert not fits(got, (rows, *dims))
        return

    assert fits(found.shape, (rows, *dims))
    assert found is array or not fits(got, (rows, *dims))
    assert bare(found.shape) == bare(got)
    np.testing.assert_array_equal(found.ravel(), array.ravel())


def fits(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    return len(shape) == len(wanted) and all(
        want in (-1, size) for size, want in zip(shape, wanted, strict=True)
    )


def bare(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return a shape without its dimensions of 1."""
    return tuple(size for size in shape if size != 1)


@pytest.mark.parametrize(
    ("array", "datatype", "got"),
    [
        (np.ones((3, 2)), "FP32", "datatype FP64"),
        (np.ones((3, 2), np.int64), "FP32", "datatype INT64"),
        (np.ones((3, 2), np.complex64), "FP32", "datatype complex64"),
        (np.ones((3, 2), "datetime64[s]"), "INT64", "datatype datetime64[s]"),
        (np.ones((3, 2), np.float32), "BYTES", "datatype FP32"),
        (np.array([["a", "b"]] * 3), "FP32", "datatype BYTES"),
        (np.array([[{0: 0.1}, None]] * 3), "FP32", "Python objects (NoneType, dict)"),
        (np.array([[{0: 0.1}, b"a"]] * 3), "BYTES", "Python objects (bytes, dict)"),
        (np.array([[b"a", b"b"]] * 3, object), "FP32", "Python objects (bytes)"),
        (np.array(None), "FP32", "Python objects (NoneType)"),
    ],
)
def test_elements_of_another_kind_are_told_beside_the_declared_datatype(
    array: Array, datatype: str, got: str
) -> None:
    said = refusal(array, declared(2, datatype=datatype))

    assert said == f"output 'y': {got}, the config declares {datatype}"


@pytest.mark.parametrize(
    "array",
    [
        np.array([["a"], ["schön"]]),
        np.array([[b"a"], [b"b"]]),
        np.array([["a"], [b"b"]], object),
        np.array([[1], [np.float32(0.5)]], object),
    ],
)
def test_bytes_are_texts_or_numbers(array: Array) -> None:
    assert fit(array, declared(1, datatype="BYTES"), 2) is array


def test_numbers_of_the_other_byte_order_are_of_the_declared_datatype() -> None:
    assert fit(np.ones((3, 2), ">f4"), declared(2)).dtype == np.dtype(">f4")


@pytest.mark.parametrize("datatype", sorted(NUMPY_TYPES.keys() - {"BYTES"}))
def test_each_datatype_is_itself_and_no_other(datatype: str) -> None:
    array = np.ones((3, 2), NUMPY_TYPES[datatype])

    assert fit(array, declared(2, datatype=datatype)) is array
    other = "FP32" if datatype != "FP32" else "FP64"
    assert refusal(array, declared(2, datatype=other)).startswith(
        f"output 'y': datatype {datatype}"
    )


def test_only_the_wanted_outputs_are_looked_at() -> None:
    described = spec(IN, [declared(2), tensor("z")])

    assert list(fitted_outputs({"y": counted(1, 2)}, described, 1, ["y"])) == ["y"]
    with pytest.raises(BadModelOutput, match="output 'z': the model did not return it"):
        fitted_outputs({"y": counted(1, 2)}, described, 1)
