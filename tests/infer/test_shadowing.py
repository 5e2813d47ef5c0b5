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
from shared.operations.shadow_comparison import Comparison

SHADOW = spec("m").model_copy(update={"version": "2"})
ANSWER = InferResult((Tensor.of("out", np.float32([[1, 2, 3]])),))


def question(value: float, columns: int = 1) -> Question:
    return Question(SHADOW, (Tensor.of("x", np.full((1, columns), value, np.float32)),), named=True)


class Waiting:
    """A request whose answer is there at once, or an error."""

    def __init__(self, error: FerryError | None) -> None:
        self.error = error
        self.done = Event()
        self.done.set()

    def wait(self) -> InferResult:
        if self.error is not None:
            raise self.error
        return ANSWER


class Queue:
    """What a shadow's queue is asked; it answers with the errors that it is given, then right."""

    def __init__(self, *errors: FerryError) -> None:
        self.errors = list(errors)
        self.asked: list[InferRequest] = []
        self.releases = list[int]()

    def new_id(self) -> str:
        return f"{len(self.asked):032x}"

    def hold(self, request: InferRequest, _: Callable[[], None]) -> Waiting:
        self.asked.append(request)
        return Waiting(self.errors.pop(0) if self.errors else None)

    def release(self) -> None:
        self.releases.append(len(self.asked))


class Counted:
    """Comparisons that are kept here."""

    def __init__(self) -> None:
        self.found: list[Comparison] = []

    def add(self, shadow_key: str, version: str, counted: Comparison) -> None:
        assert (shadow_key, version) == ("m/2", "1")
        self.found.append(counted)

    def total(self) -> Counter[str]:
        sums = Counter[str]()
        for each in self.found:
            sums.update({name: int(value) for name, value in each._asdict().items() if value})
        return sums


def shadowed(queue: Queue, counted: Counted) -> Shadowing:
    any_queue: Any = lambda _: queue  # noqa: E731
    any_counted: Any = counted
    return Shadowing(any_counted, any_queue, 30.0)


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
