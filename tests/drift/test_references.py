"""A reference's bins: where they lie, what falls into them, and what is no reference."""

from __future__ import annotations

import json

import numpy as np
import pytest

from shared.drift.findings import findings
from shared.drift.reference import (
    MAX_CLASSES,
    Reference,
    class_histogram,
    direction_histogram,
    histogram,
    reference_of,
)


def made(name: str, values: np.ndarray) -> Reference:
    return Reference.of({name: histogram(values, name)})


def test_each_bin_holds_a_tenth_and_one_lies_to_each_side() -> None:
    values = np.random.default_rng(2).normal(size=1000)
    bins = made("mean", values).signals["mean"]

    assert bins.counts[0] == bins.counts[-1] == 0 and sum(bins.counts) == 1000
    assert all(98 <= count <= 102 for count in bins.counts[1:-1])
    assert len(bins.edges) == 11
    assert bins.counted(np.array([-99.0, 99.0, np.nan]))[[0, -1]].tolist() == [1, 2]


def test_equal_values_stay_together_though_their_last_digits_change() -> None:
    sure = np.concatenate([np.full(600, 1.0), np.random.default_rng(1).uniform(0.4, 0.99, 400)])
    bins = made("confidence", sure).signals["confidence"]

    assert (bins.counted(sure) == bins.counted(sure - 1e-6)).all()
    assert (bins.counted(sure) == bins.counted(sure + 1e-6)).all()


def test_lengths_have_their_edges_between_whole_numbers() -> None:
    lengths = np.repeat(np.arange(1, 31), 10).astype(float)

    assert all(edge % 1 == 0.5 for edge in made("tokens", lengths).signals["tokens"].edges[:-1])


def test_a_constant_and_nothing_finite_are_references_too() -> None:
    constant = made("mean", np.full(50, 3.0)).signals["mean"]
    nothing = made("mean", np.full(50, np.nan)).signals["mean"]

    assert constant.counted(np.array([3.0, 2.9, 3.1])).tolist() == [1, 1, 1]
    assert nothing.counted(np.full(9, np.nan)).tolist()[-1] == 9


def test_a_record_of_an_earlier_release_holds_its_largest_value_inside() -> None:
    edges = np.linspace(0, 1, 11).tolist()
    bins = Reference.of({"confidence": {"edges": edges, "counts": [0, *[10] * 10, 0]}})

    assert bins.signals["confidence"].counted(np.array([1.0, 0.0])).tolist()[1:11:9] == [1, 1]


def test_of_many_classes_the_most_frequent_have_bins_of_their_own() -> None:
    numbers = np.concatenate([np.repeat(np.arange(100), 2), np.full(50, 700), [-1, 10**12]])
    bins = Reference.of({"prediction": class_histogram(numbers, 1000)}).signals["prediction"]

    assert len(bins.counts) == MAX_CLASSES and sum(bins.counts) == len(numbers)
    assert 700 in bins.classes
    placed = bins.counted(np.array([700, 700, 999, -5, 10**12]))
    assert placed[bins.classes.index(700)] == 2 and placed[-1] == 3
    assert bins.label(len(bins.classes)) == "others"


def test_vectors_are_compared_with_their_mean_direction() -> None:
    random = np.random.default_rng(5)
    rows = random.normal(size=(300, 16)) + 1.0
    found = Reference.of(direction_histogram([rows[:100], rows[100:]]))

    assert found.centre is not None and np.linalg.norm(found.centre) == pytest.approx(1.0, rel=1e-3)
    assert direction_histogram([]) == direction_histogram([rows, rows[:, :3]]) == {}


def test_what_the_registry_keeps_is_the_same_reference() -> None:
    random = np.random.default_rng(5)
    record = {"norm": histogram(random.normal(size=99))}
    record |= direction_histogram([random.normal(size=(99, 4)) + 1])
    first = Reference.of(json.loads(json.dumps(record)))
    again = reference_of(first.encode().encode())

    assert again is not None and again.digest == first.digest and again.signals == first.signals


@pytest.mark.parametrize(
    "record",
    [
        {}, [], "text", {"mean": {}}, {"mean": {"counts": [1, 2], "edges": []}},
        {"mean": {"counts": [0, 0, 0], "edges": [0, 1]}},
        {"mean": {"counts": [1, 1, 1], "edges": [1, 0]}},
        {"mean": {"counts": [1, -1, 1], "edges": [0, 1]}},
        {"mean": {"counts": [1, 1, 1], "edges": [0, "x"]}},
        {"mean": {"counts": [1, 1, 1], "edges": [0, float("inf")]}},
        {"prediction": {"counts": []}}, {"prediction": 3}, {"prediction": {"counts": [None]}},
        {f"signal {number}": {"counts": [1]} for number in range(100)},
    ],
)  # fmt: skip
def test_what_is_no_reference_is_refused_and_skipped(record: object) -> None:
    with pytest.raises(ValueError):
        Reference.of(record)  # type: ignore[arg-type]
    assert reference_of(json.dumps(record).encode()) is None


def test_classes_that_are_others_are_kept_with_the_rest() -> None:
    """As of a model that answers -1 and 1: the digest under which rows are counted holds them."""
    first = Reference.of({"prediction": class_histogram(np.array([1] * 300 + [-1] * 60), 2)})

    again = reference_of(first.encode().encode())

    assert again is not None and again.digest == first.digest and again.signals == first.signals
    seen = again.signals["prediction"].counted(np.full(600, -1))
    (found,) = findings(again, {"prediction": seen})
    assert found.drifts


def test_too_few_answers_say_nothing() -> None:
    reference = made("mean", np.random.default_rng(2).normal(size=1000))
    bins = reference.signals["mean"]
    far = np.full(500, 9.0)

    (few,) = findings(reference, {"mean": bins.counted(far[:199])})
    (enough,) = findings(reference, {"mean": bins.counted(far[:200])})

    assert not few.drifts and enough.drifts
    assert enough.change.endswith("0% -> 100%")
