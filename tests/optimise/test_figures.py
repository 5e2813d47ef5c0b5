"""The figures of a comparison: known answers, and what counts as a difference."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from shared.drift.answers import scored_output
from shared.model_spec import ModelSpec, TensorSpec
from worker.optimise.agreement import wilson
from worker.optimise.figures import BY_PRECISION, Differences, Tolerances

FP32 = BY_PRECISION["FP32"]


def spec_of(datatype: str = "FP32", dims: tuple[int, ...] = (3,)) -> ModelSpec:
    tensors = (TensorSpec(name="y", datatype=datatype, dims=dims),)
    return ModelSpec(
        name="m", version="1", platform="", max_batch_size=8, inputs=tensors, outputs=tensors
    )


def compared(a: object, b: object, **given: object) -> Differences:
    found = Differences(spec_of(**given))  # type: ignore[arg-type]
    found.add({"y": np.asarray(a)}, {"y": np.asarray(b)})
    return found


def test_wilson_is_the_published_interval() -> None:
    assert wilson(9, 10) == pytest.approx((0.5958, 0.9821), abs=1e-4)
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(0, 0) == (0.0, 1.0)


def test_a_vector_names_no_class() -> None:
    scores = spec_of()

    vectors = scores.with_changes(parameters={"output_kind": "embedding"})

    assert scored_output(scores) is not None
    assert scored_output(vectors) is None


def test_a_hand_worked_difference() -> None:
    a, b = np.array([[3.0, 4.0, 0.0]]), np.array([[3.0, 4.0, 1.0]])

    found = compared(a, b).differences["y"]

    typical = math.sqrt(25 / 3)
    assert found.max_absolute == 1.0
    assert found.max_relative == pytest.approx(1 / typical)
    assert found.min_cosine == pytest.approx(25 / (5 * math.sqrt(26)))
    centred = np.corrcoef(a[0], b[0])[0, 1]
    assert found.min_centred_cosine == pytest.approx(centred)


def test_an_offset_does_not_hide_behind_a_cosine() -> None:
    a = np.array([[100.0, 101.0, 102.0]])

    found = compared(a, a[:, ::-1].copy()).differences["y"]

    assert found.min_cosine > 0.999
    assert found.min_centred_cosine == pytest.approx(-1.0)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_in_one_alone_is_a_fault(value: float) -> None:
    a, b = np.array([[1.0, 2.0, 3.0]]), np.array([[1.0, 2.0, value]])

    assert compared(a, b).faults(BY_PRECISION["INT8"], real=False)
    assert compared(b, b).faults(FP32) == []


def test_answers_of_another_shape_are_a_fault() -> None:
    assert compared(np.zeros((2, 3)), np.zeros((2, 4)), dims=(-1,)).faults(FP32)


def test_texts_and_whole_numbers_are_equal_or_not() -> None:
    texts = np.array([[b"a"], [b"b"]], object)

    assert compared(texts, texts, datatype="BYTES", dims=(1,)).faults(FP32) == []
    assert compared(texts, [["a"], ["b"]], datatype="BYTES", dims=(1,)).faults(FP32) == []
    assert compared(texts, texts[::-1], datatype="BYTES", dims=(1,)).faults(FP32)
    assert compared([1, 2], [1, 3], datatype="INT64", dims=()).faults(FP32)


def test_agreement_and_accuracy_count_rows_of_real_data_alone() -> None:
    a = np.eye(3, dtype=np.float32)[[0, 1, 2, 0] * 4]
    b = np.eye(3, dtype=np.float32)[[0, 1, 2, 1] * 4]
    found = Differences(spec_of())
    found.add({"y": a}, {"y": b}, np.array([0, 1, 2, 0] * 4))
    loose = Tolerances(None, None, 0.9, 0.1)

    assert found.as_json(loose)["agreement"]["top1"] == 0.75
    assert found.agreement.accuracy_drop == 0.25
    assert len(found.faults(loose)) == 2
    assert found.faults(loose, real=False) == []


def test_figures_add_up_over_batches() -> None:
    random = np.random.default_rng(3)
    a, b = random.normal(size=(2, 10, 3))
    whole, parts = compared(a, b).differences["y"], Differences(spec_of())
    for rows in (slice(0, 3), slice(3, 4), slice(4, 10)):
        parts.add({"y": a[rows]}, {"y": b[rows]})

    found = parts.differences["y"]
    assert found.rows == whole.rows
    assert found.mean_cosine == pytest.approx(whole.mean_cosine)
    assert found.min_centred_cosine == pytest.approx(whole.min_centred_cosine)


INT8 = BY_PRECISION["INT8"]
CLASSES = 1000


def scores(rows: int, lead: float) -> np.ndarray:
    """Return scores of about 1 for many classes, the first ahead of the second by `lead`."""
    made = np.random.default_rng(5).normal(size=(rows, CLASSES)).clip(-3, 3)
    made[:, 0] = 4.0
    made[:, 1] = 4.0 - lead
    return made


def swapped(a: np.ndarray, every: int) -> np.ndarray:
    """Return scores with the first two classes changed for each other in each `every`th row."""
    b = a.copy()
    b[::every, :2] = a[::every, 1::-1]
    return b


def test_another_of_two_classes_that_were_as_good_is_none() -> None:
    a = scores(60, lead=0.15)
    found = compared(a, swapped(a, 3), dims=(CLASSES,))

    assert found.faults(INT8) == []
    agreement = found.as_json(INT8)["agreement"]
    assert (agreement["top1"], agreement["near_ties"]) == (pytest.approx(2 / 3), 60)
    (fault,) = found.faults(Tolerances(None, 0.9999, 0.95))  # that precision ties at 0.02 alone
    assert "the same class for 0.6667" in fault


@pytest.mark.parametrize("rows", [20, 30, 64, 200, 1000])
def test_other_classes_in_a_tenth_of_the_rows_are_refused(rows: int) -> None:
    a = scores(rows, lead=0.5)
    found = compared(a, swapped(a, 10), dims=(CLASSES,))

    assert found.differences["y"].min_centred_cosine > 0.999  # which shows nothing of it
    (fault,) = found.faults(INT8)
    assert re.search(rf"the same class for 0\.(9000|8906) .* of the {rows} rows of {rows}", fault)


def test_near_ties_hide_no_class_that_was_far_behind() -> None:
    a = scores(60, lead=0.1)
    b = a.copy()
    b[::10, 2] = 4.5  # which nearly tied with nothing

    assert "the same class for 0.0000" in compared(a, b, dims=(CLASSES,)).faults(INT8)[0]


def test_one_row_of_few_is_no_share_of_many() -> None:
    a = scores(12, lead=0.5)
    one, three = swapped(a, 12), swapped(a, 4)
    many = scores(100, lead=0.5)

    assert compared(a, one, dims=(CLASSES,)).faults(INT8) == []
    assert compared(a, three, dims=(CLASSES,)).faults(INT8)
    assert compared(a[:1], one[:1], dims=(CLASSES,)).faults(INT8)  # not one of all
    assert compared(many, swapped(many, 15), dims=(CLASSES,)).faults(INT8) == []  # 0.93 of 100
    many = scores(1000, lead=0.5)
    assert compared(many, swapped(many, 15), dims=(CLASSES,)).faults(INT8)  # and of 1000


def test_a_cosine_is_wanted_on_the_mean_and_of_one_row_less() -> None:
    a = scores(60, lead=0.5)
    noise = np.random.default_rng(6).normal(size=a.shape)
    noise[:, :2] = 0
    seventh = np.arange(60)[:, None] == 7

    def faults(size: object) -> str:
        return "; ".join(compared(a, a + size * noise, dims=(CLASSES,)).faults(INT8))

    assert faults(0.1) == faults(0.2 * seventh) == ""
    assert faults(0.2).startswith("output 'y': mean cosine")
    assert faults(0.5 * seventh).startswith("output 'y': one row's cosine")


def test_agreement_of_no_row_is_a_fault() -> None:
    a = np.eye(3)[[0, 1, 2] * 4]

    (fault,) = compared(a, np.roll(a, 1, axis=1)).faults(Tolerances(None, None, 0.5))
    assert "the same class for 0.0000" in fault
