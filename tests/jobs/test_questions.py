"""Rows of tables as inputs: the very numbers that stand there, or an error of that row alone."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_backend import fake_spec

from jobs.bulk.questions import Question, Questions
from jobs.bulk.sources import Item
from shared.errors import ModelNotReady
from shared.inputs.tables import declared_inputs
from shared.inputs.texts import TokenizerCache
from shared.messages import Tensor
from shared.model_spec import ImageInput, ModelSpec, TensorSpec


class NoAssets:
    def asset(self, digest: str) -> bytes | None:
        raise AssertionError(digest)


def spec_of(datatype: str, *dims: int) -> ModelSpec:
    tensor = TensorSpec(name="x", datatype=datatype, dims=dims)
    return fake_spec().with_changes(inputs=(tensor,), max_batch_size=4)


def questions(spec: ModelSpec, *rows: dict[str, Any], folder: Path = Path()) -> list[Question]:
    items = [Item(f"row {number}", row) for number, row in enumerate(rows)]
    return list(Questions(spec, TokenizerCache(NoAssets()), folder).of(tuple(items)))


@pytest.mark.parametrize(
    ("datatype", "value", "becomes"),
    [
        ("UINT8", "255", 255),
        ("INT64", "9007199254740993", 9007199254740993),
        ("INT64", 9007199254740993, 9007199254740993),
        ("INT32", "3.0", 3),
        ("FP32", "1e3", 1000.0),
        ("FP16", 1.5, 1.5),
        ("FP32", float("inf"), float("inf")),
        ("BOOL", 1, True),
        ("BYTES", b"a\xff", b"a\xff"),
        ("BYTES", "\u00e9", "\u00e9".encode()),
        ("BYTES", 7, b"7"),
    ],
)
def test_a_value_stays_what_it_is(datatype: str, value: Any, becomes: Any) -> None:
    spec = spec_of(datatype, 1)

    found = declared_inputs({"x": [value]}, spec)["x"]

    assert found.shape == (1, 1)
    assert found[0, 0] == becomes


@pytest.mark.parametrize(
    ("datatype", "value", "says"),
    [
        ("UINT8", "300", "300 to 300 is beyond UINT8"),
        ("UINT8", -1, "beyond UINT8"),
        ("INT32", 3_000_000_000, "beyond INT32"),
        ("INT32", float("inf"), "beyond INT32"),
        ("INT32", "1.5", "not fractions"),
        ("INT64", 2**70, "no INT64"),
        ("FP16", 70000, "beyond FP16"),
        ("FP32", 1e39, "beyond FP32"),
        ("FP32", "one", "no FP32"),
        ("FP32", None, "column 'x' has no value"),
        ("BYTES", None, "column 'x' has no value"),
        ("FP32", [1.0, 2.0], r"rows of shape \[2\], the model wants \[1\]"),
    ],
)
def test_what_the_model_would_see_otherwise_is_refused(
    datatype: str, value: Any, says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        declared_inputs({"x": [value]}, spec_of(datatype, 1))


def test_rows_of_one_value_need_no_dimension() -> None:
    assert declared_inputs({"x": [1, 2]}, spec_of("FP32"))["x"].tolist() == [1.0, 2.0]


def test_a_row_that_does_not_fit_leaves_the_others_together() -> None:
    rows = [{"x": [1, 2]}, {"x": [3, 4]}, {"x": [5]}, {"x": [6, 7]}, {"x": [8, 9]}]

    found = questions(spec_of("FP32", 2), *rows)

    assert [[item.source for item in each.items] for each in found] == [
        ["row 0", "row 1"], ["row 2"], ["row 3", "row 4"],
    ]  # fmt: skip
    assert [bool(each.error) for each in found] == [False, True, False]
    assert np.array_equal(found[0].inputs[0].array(), [[1, 2], [3, 4]])


@pytest.mark.parametrize("value", ["nan", "-inf", "1e999", float("nan"), float("inf")])
@pytest.mark.parametrize("datatype", ["FP16", "FP32", "FP64", "BF16", "INT32", "UINT8"])
def test_what_is_no_finite_number_is_an_error_of_its_row(datatype: str, value: Any) -> None:
    found = questions(spec_of(datatype, 1), {"x": "1"}, {"x": value}, {"x": "3"})

    assert [bool(each.error) for each in found] == [False, True, False]


@pytest.mark.parametrize("error", [TypeError("half a character"), RecursionError(), KeyError(1)])
def test_whatever_an_encoder_raises_is_an_error_of_its_row(error: Exception) -> None:
    def encode(texts: list[str], spec: ModelSpec) -> tuple[tuple[Tensor, ...], list[bool]]:
        if "odd" in texts:
            raise error
        return (Tensor.of("x", np.array(texts, object)),), []

    found = texts_asked(encode)

    assert [bool(each.error) for each in found] == [False, True, False]


def test_a_tokenizer_that_is_away_is_no_error_of_a_row() -> None:
    def encode(texts: list[str], spec: ModelSpec) -> tuple[tuple[Tensor, ...], list[bool]]:
        raise ModelNotReady("not yet")

    with pytest.raises(ModelNotReady):
        texts_asked(encode)


def test_a_file_that_a_table_names_may_be_none(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "itself.png").symlink_to("itself.png")
    image = ImageInput(input="x", height=2, width=2)
    spec = spec_of("UINT8", 2, 2, 3).with_changes(image=image)
    names = ["pipe.png", "itself.png", "nul\0.png", "\udcff.png", "x" * 5000, "", "."]

    found = questions(spec, *({"image": name} for name in names), folder=tmp_path)

    assert len(found) == len(names)
    assert all(each.error for each in found)


def texts_asked(encode: Callable[..., Any]) -> list[Question]:
    """Return the requests of three texts, the second one odd."""
    tokenizers = TokenizerCache(NoAssets())
    tokenizers.encode = encode  # type: ignore[method-assign]
    items = [Item("a", whole="one"), Item("b", whole="odd"), Item("c", whole="three")]
    return list(Questions(spec_of("BYTES", 1), tokenizers, Path()).of(tuple(items)))


def test_rows_of_other_columns_are_asked_apart() -> None:
    found = questions(spec_of("FP32", 1), {"x": 1}, {"y": 2}, {"x": 3, "label": "a"})

    assert [len(each.items) for each in found] == [1, 1, 1]
    assert [each.error for each in found] == ["", "", ""]
