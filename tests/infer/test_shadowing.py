"""Copies for a shadow cost requests nothing, are drawn at random, and are counted as they are."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from threading import Event
from typing import Any

import numpy as np
import pytest
from registered import spec
from waiting import wait_until

from api.infer import shadowing
from api.infer.question import Question
from api.infer.shadowing import MAX_COPIES, Copy, Round, Shadowing
from shared.errors import FerryError, ModelFailed, QueueFull, VersionRetired
from shared.messages import InferRequest, InferResult, Tensor
from shared.operations.disagreements import LARGEST_PART_BYTES, Disagreement
from shared.operations.shadow_comparison import Comparison

SHADOW = spec("m").model_copy(update={"version": "2"})
ANSWER = InferResult((Tensor.of("out", np.float32([[1, 2, 3]])),))


def question(value: float, columns: int = 1) -> Question:
    return Question(SHADOW, (Tensor.of("x", np.full((1, columns), value, np.float32)),), named=True)


class Waiting:
    """A request whose answer is there at once, or an error."""

    def __init__(self, error: FerryError | None, answer: InferResult) -> None:
        self.error, self.answer = error, answer
        self.done = Event()
        self.done.set()

    def wait(self) -> InferResult:
        if self.error is not None:
            raise self.error
        return self.answer


class Queue:
    """What a shadow's queue is asked; it answers with the errors that it is given, then right."""

    def __init__(self, *errors: FerryError, answer: InferResult = ANSWER) -> None:
        self.errors, self.answer = list(errors), answer
        self.asked: list[InferRequest] = []
        self.releases = list[int]()

    def new_id(self) -> str:
        return f"{len(self.asked):032x}"

    def hold(self, request: InferRequest, _: Callable[[], None]) -> Waiting:
        self.asked.append(request)
        return Waiting(self.errors.pop(0) if self.errors else None, self.answer)

    def release(self) -> None:
        self.releases.append(len(self.asked))


class Counted:
    """Comparisons that are kept here."""

    def __init__(self) -> None:
        self.found: list[Comparison] = []
        self.kept: list[Disagreement] = []

    def add(self, shadow_key: str, version: str, counted: Comparison) -> None:
        assert (shadow_key, version) == ("m/2", "1")
        self.found.append(counted)

    def keep(self, shadow_key: str, version: str, found: list[Disagreement], most: int) -> None:
        assert (shadow_key, version, most) == ("m/2", "1", 3)
        self.kept += found

    def total(self) -> Counter[str]:
        sums = Counter[str]()
        for each in self.found:
            sums.update({name: int(value) for name, value in each._asdict().items() if value})
        return sums


def shadowed(queue: Queue, counted: Counted) -> Shadowing:
    any_queue: Any = lambda _: queue  # noqa: E731
    any_counted: Any = counted
    return Shadowing(any_counted, any_queue, 30.0, 3)


def test_copies_are_sent_and_counted_together() -> None:
    queue, counted = Queue(), Counted()
    copying = shadowed(queue, counted)

    for value in range(10):
        copying.copy(question(value), "1", ANSWER)

    wait_until(lambda: counted.total()["request_count"] == 10, 10, "all are compared")
    assert len(counted.found) == len(queue.releases) <= 2
    assert counted.total()["agreed_count"] == 10
    assert all(each.named for each in queue.asked)


def test_what_is_not_compared_is_counted_as_what_it_is() -> None:
    errors = [ModelFailed("no"), QueueFull.with_waiting(1), VersionRetired.default()]
    counted = Counted()
    copying = shadowed(Queue(*errors), counted)

    for value in range(5):
        copying.copy(question(value), "1", ANSWER)

    wait_until(lambda: counted.total()["agreed_count"] == 2, 10, "the last are compared")
    total = counted.total()
    assert (total["request_count"], total["failed_count"], total["skipped_count"]) == (3, 1, 1)


def test_the_first_row_that_differs_is_kept_of_as_many_as_may_be() -> None:
    two = Question(SHADOW, (Tensor.of("x", np.float32([[1], [2]])),), named=True)
    served, differs = (outputs([1, 2, 3], row) for row in ([4, 5, 6], [6, 5, 4]))
    counted = Counted()
    copying = shadowed(Queue(ModelFailed("no"), answer=differs), counted)

    for answer in (served, differs, *[served] * 9):  # the first fails, the second is the same
        copying.copy(two, "1", answer)

    wait_until(lambda: counted.total()["request_count"] == 11, 30, "all are compared")
    wait_until(lambda: len(counted.kept) == 3, 30, "as many are kept as may be")
    failed, *rest = counted.kept
    assert (failed.error, failed.shadow) == ("no", ())
    assert len(rest) == 2
    for each in map(Disagreement.decode, [each.encode() for each in rest]):
        assert each.inputs[0].array().tolist() == [[2.0]]
        assert each.served[0].array().tolist() == [[4.0, 5.0, 6.0]]
        assert each.shadow[0].array().tolist() == [[6.0, 5.0, 4.0]]


def test_what_is_too_large_is_left_out_of_an_example() -> None:
    counted, columns = Counted(), LARGEST_PART_BYTES // 4 + 1
    copying = shadowed(Queue(answer=outputs([9, 2, 3])), counted)

    copying.copy(question(1.0, columns), "1", ANSWER)

    wait_until(lambda: counted.kept, 10, "it is kept")
    assert (counted.kept[0].inputs, len(counted.kept[0].served)) == ((), 1)


def outputs(*rows: list[int]) -> InferResult:
    return InferResult((Tensor.of("out", np.float32(rows)),))


def test_a_copy_takes_no_place_of_a_request_and_no_time() -> None:
    queue, counted = Queue(), Counted()
    copying = shadowed(queue, counted)
    began = time.perf_counter()

    copying.copy(question(1), "1", ANSWER)

    assert queue.asked == []
    assert time.perf_counter() - began < shadowing.GATHER_SECONDS
    wait_until(lambda: counted.found, 10, "it is compared")
    assert copying.under_way == 0


@pytest.mark.parametrize("count", [8, 2000])
def test_each_is_kept_as_likely_as_any_other(count: int) -> None:
    random.seed(7)
    kept, rounds = Counter[int](), 100
    for _ in range(rounds):
        one = Round()
        for number in range(count):
            one.add(Copy(question(number), "1", ANSWER))
        assert len(one.copies) == min(count, MAX_COPIES)
        assert one.skipped.total() == max(0, count - MAX_COPIES)
        kept.update(int(copy.question.inputs[0].array()[0, 0]) for copy in one.copies)

    quarters = [sum(kept[n] for n in range(q * count // 4, (q + 1) * count // 4)) for q in range(4)]
    assert max(quarters) < 1.5 * min(quarters)


def test_copies_of_many_bytes_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shadowing, "MAX_COPIES_BYTES", 1000)
    one = Round()

    for number in range(100):
        one.add(Copy(question(number, columns=100), "1", ANSWER))

    assert len(one.copies) == 2
    assert one.skipped == {("m/2", "1"): 98}
