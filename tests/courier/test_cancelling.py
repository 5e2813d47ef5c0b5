"""A request that is cancelled leaves the queue, and whoever waits for it is told at once."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from counting_model import CountingModel, counting_model
from waiting import wait_until

from shared.errors import ClientLeft
from shared.messages import InferRequest, Tensor
from shared.request_queue.api_end import PendingRequest, RequestQueue
from shared.request_queue.limits import Limits
from shared.settings import Settings


@pytest.fixture
def model(settings: Settings) -> Iterator[CountingModel]:
    with counting_model(settings) as model:
        yield model


@pytest.fixture
def queue(model: CountingModel) -> RequestQueue:
    return RequestQueue(model.redis, model.keys, Limits())


def push(queue: RequestQueue, value: float) -> PendingRequest:
    x = Tensor.of("x", np.full((1, 2), value, np.float32))
    return queue.push(InferRequest(queue.new_id(), 1, (x,), (), 120.0))


def test_what_waits_is_not_computed_and_its_waiter_told(
    model: CountingModel, queue: RequestQueue
) -> None:
    model.gate.clear()
    first = push(queue, 1)
    wait_until(model.busy, 10, "the first runs")
    second = push(queue, 2)
    wait_until(lambda: model.depth() == 1, 10, "the second waits")

    second.cancel()
    second.cancel()

    with pytest.raises(ClientLeft):
        second.wait()
    wait_until(lambda: model.depth() == 0, 10, "it is off the queue")
    model.gate.set()
    assert first.wait().outputs[0].array().tolist() == [[2.0, 2.0]]
    assert model.computed == [1.0]
    assert model.count("cancelled") == 1
    assert queue.waiting == 0


def test_what_runs_is_computed_to_its_end_for_nobody(
    model: CountingModel, queue: RequestQueue
) -> None:
    model.gate.clear()
    running = push(queue, 1)
    wait_until(model.busy, 10, "it runs")

    running.cancel()

    with pytest.raises(ClientLeft):
        running.wait()
    model.gate.set()
    assert push(queue, 2).wait().outputs[0].array().tolist() == [[4.0, 4.0]]
    assert model.computed == [1.0, 2.0]


def test_what_is_answered_stays_answered(model: CountingModel, queue: RequestQueue) -> None:
    answered = push(queue, 1)
    answered.done.wait(10)

    answered.cancel()

    assert answered.wait().outputs[0].array().tolist() == [[2.0, 2.0]]
    assert push(queue, 2).wait().error is None
    assert model.count("cancelled") == 0
