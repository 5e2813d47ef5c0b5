"""Requests of one batch run in passes by length where that takes less time."""

from __future__ import annotations

from itertools import chain, combinations

import numpy as np
import pytest
from fake_backend import FakeBackend, claimed, fake_spec
from hypothesis import given
from hypothesis import strategies as st

from shared.messages import InferResult
from worker.instance.batch import answer_batch
from worker.instance.batch_parts import DecodedRequest
from worker.instance.passes.by_length import SPLIT_WORTH, by_length
from worker.instance.passes.costs import PassCosts, Sharing

MODEL = fake_spec(dims=(-1,), ragged=True)


def costs(seconds: float, element_seconds: float) -> PassCosts:
    """Return what has seen passes of many sizes at this cost."""
    found = PassCosts()
    for elements in (8, 64, 200, 16, 800, 40, 8, 64):
        found.learn(elements, seconds + element_seconds * elements)
    return found


def requests(lengths: list[int], rows: int = 1) -> list[DecodedRequest]:
    made = []
    for index, length in enumerate(lengths):
        x = np.full((rows, length), index, np.float32)
        item = claimed(str(index), x)
        made.append(DecodedRequest(item, item.request(), {"x": x}))
    return made


def lengths(groups: list[list[DecodedRequest]]) -> list[list[int]]:
    return [[one.arrays["x"].shape[1] for one in group] for group in groups]


def test_what_a_pass_costs_is_learnt_from_passes() -> None:
    known = costs(2e-3, 1e-5).known()

    assert known is not None
    assert known.seconds == pytest.approx(2e-3) and known.element_seconds == pytest.approx(1e-5)


def test_the_latest_passes_count_most() -> None:
    found = costs(2e-3, 1e-5)
    for _ in range(50):
        for elements in (100, 900):
            found.learn(elements, 1e-4 * elements)

    known = found.known()
    assert known is not None and known.element_seconds == pytest.approx(1e-4, rel=0.05)


@pytest.mark.parametrize("seconds", [0.0, 1e-3])
def test_passes_of_one_size_tell_nothing_and_all_run_together(seconds: float) -> None:
    found = PassCosts()
    for _ in range(30):
        found.learn(512, 0.01 + seconds)

    assert found.known() is None
    assert len(by_length(requests([512, *[8] * 31]), {"x"}, found)) == 1


def test_a_long_one_does_not_lengthen_its_neighbours() -> None:
    groups = by_length(requests([8] * 15 + [512] + [8] * 16), {"x"}, costs(1e-4, 1e-5))

    assert lengths(groups) == [[512], [8] * 31]


def test_where_a_pass_costs_more_than_padding_all_run_together() -> None:
    groups = by_length(requests([512, *[8] * 31]), {"x"}, costs(1.0, 1e-5))

    assert lengths(groups) == [[512, *[8] * 31]]


def test_requests_of_several_rows_count_as_many() -> None:
    asked = [*requests([100], rows=1), *requests([20, 20], rows=8)]

    assert lengths(by_length(asked, {"x"}, costs(1e-4, 1e-5))) == [[100], [20, 20]]


@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=7), st.floats(0, 1e-3), st.floats(1e-6, 1e-4)
)
def test_no_other_cut_takes_less(sizes: list[int], seconds: float, element: float) -> None:
    learnt = costs(seconds, element)
    groups = by_length(requests(sizes), {"x"}, learnt)

    known = learnt.known()
    assert known is not None
    assert sorted(chain.from_iterable(lengths(groups))) == sorted(sizes)

    def time(cut: list[list[int]]) -> float:
        return sum(known.seconds + known.element_seconds * len(one) * max(one) for one in cut)

    falling = sorted(sizes, reverse=True)
    least = min(
        time([falling[a:b] for a, b in zip((0, *cuts), (*cuts, len(sizes)), strict=True)])
        for count in range(len(sizes))
        for cuts in combinations(range(1, len(sizes)), count)
    )
    assert (
        time(lengths(groups)) <= max(least, least / SPLIT_WORTH if len(groups) == 1 else 0) + 1e-9
    )


def test_everyone_gets_his_own_answer_and_the_passes_are_told_apart() -> None:
    backend = FakeBackend()
    sizes = [3, 200, 4, 3, 190, 5]
    batch = [claimed(str(i), np.full((1, size), i, np.float32)) for i, size in enumerate(sizes)]

    answers = answer_batch(
        batch, MODEL, backend, "i", sharing=Sharing(costs=costs(1e-3, 1e-5))
    ).results

    for index, encoded in enumerate(answers):
        result = InferResult.decode(encoded)
        (output,) = result.outputs
        assert set(output.array()[0, : sizes[index]]) == {2.0 * index}
        assert result.timings.batch_size == (2 if sizes[index] > 100 else 4)
    assert sorted(one["x"].shape for one in backend.passes) == [(2, 200), (4, 5)]


def test_a_text_on_which_the_model_raises_fails_alone() -> None:
    backend = FakeBackend(poison=4.0)
    sizes = [3, 200, 4, 3, 190, 5]
    batch = [claimed(str(i), np.full((1, size), i, np.float32)) for i, size in enumerate(sizes)]

    answers = answer_batch(
        batch, MODEL, backend, "i", sharing=Sharing(costs=costs(1e-3, 1e-5))
    ).results

    failed = [InferResult.decode(one).error is not None for one in answers]
    assert failed == [False, False, False, False, True, False]


class Listener(PassCosts):
    """Keeps what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[int] = []

    def learn(self, elements: int, seconds: float) -> None:
        assert seconds > 0
        self.told.append(elements)


def test_an_instance_learns_from_what_it_answers() -> None:
    listener = Listener()

    for sizes in ([10], [20, 30]):
        batch = [claimed(str(size), np.ones((1, size), np.float32)) for size in sizes]
        answer_batch(batch, MODEL, FakeBackend(), "i", sharing=Sharing(costs=listener))

    assert listener.told == [10, 2 * 30]
