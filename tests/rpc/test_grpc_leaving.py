"""gRPC clients that give up, or whose deadline passes: what they asked is not computed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any

import pytest
from counting_model import CountingModel, counting_model
from ferry_processes import free_port
from grpc_process import address, grpc_client, refused, row, running_grpc
from tritonclient.grpc import InferenceServerClient
from waiting import wait_until

from shared.settings import Settings

LEAVING = 100
SHORT_SECONDS = 0.3
FIRST = 0.0
"""What is computed while the others wait."""


@pytest.fixture(scope="module")
def settings(redis_url: str) -> Settings:
    """Settings of this file's server."""
    return Settings(
        redis_url=redis_url, key_prefix="grpc-leaving", grpc_port=free_port(),
        request_timeout_seconds=120,
    )  # fmt: skip


@pytest.fixture(scope="module")
def served(settings: Settings) -> Iterator[CountingModel]:
    """A model of single rows and two levels behind a real server."""
    with counting_model(settings, priority_levels=2) as model, running_grpc(settings):
        yield model


@pytest.fixture
def client(settings: Settings, served: CountingModel) -> Iterator[InferenceServerClient]:
    with grpc_client(settings) as client:
        yield client


@pytest.fixture
def model(served: CountingModel, client: InferenceServerClient) -> Iterator[CountingModel]:
    """The model with nothing counted yet, and a first request in it that it cannot finish."""
    served.computed.clear()
    served.redis.delete(served.keys.counts)
    served.gate.clear()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(client.infer, "fake", [row(FIRST, FIRST)])
        wait_until(served.busy, 10, "the first is in flight")
        yield served
        served.gate.set()
        first.result()
    wait_until(lambda: not served.busy(), 10, "nothing runs")


def finish(model: CountingModel) -> list[float]:
    """Open the gate and return what was computed, once nothing waits or runs."""
    model.gate.set()
    wait_until(lambda: model.depth() == 0 and not model.busy(), 10, "all is done")
    return model.computed


def test_a_call_that_is_cancelled_leaves_the_queue(
    client: InferenceServerClient, model: CountingModel
) -> None:
    found: SimpleQueue[Any] = SimpleQueue()
    call = client.async_infer("fake", [row(1, 1)], lambda result, error: found.put(error))
    wait_until(lambda: model.depth() == 1, 10, "it waits")

    call.cancel()

    wait_until(lambda: model.depth() == 0, 10, "it is off the queue")
    wait_until(lambda: model.count("cancelled") == 1, 10, "it is counted")
    assert found.get(timeout=10).status() == "StatusCode.CANCELLED"
    assert finish(model) == [FIRST]


@contextmanager
def refused_once(model: CountingModel) -> Iterator[None]:
    """Have the queue refuse the block's requests, as one of a version that was replaced, once."""
    redis, gate = model.redis, model.keys.elsewhere
    redis.set(gate, "all")
    with redis.monitor() as seen:
        yield
        while f"GET {gate}" not in seen.next_command()["command"]:
            pass
    redis.delete(gate)


def test_a_call_that_is_cancelled_takes_back_what_is_asked_in_its_place(
    client: InferenceServerClient, model: CountingModel
) -> None:
    found: SimpleQueue[Any] = SimpleQueue()
    with refused_once(model):
        call = client.async_infer("fake", [row(1, 1)], lambda result, error: found.put(error))
    wait_until(lambda: model.depth() == 1, 10, "it is asked again")

    call.cancel()

    wait_until(lambda: model.depth() == 0, 10, "it is off the queue")
    assert found.get(timeout=10).status() == "StatusCode.CANCELLED"
    assert finish(model) == [FIRST]


def test_a_stream_that_is_cut_takes_back_what_is_asked_in_its_place(
    client: InferenceServerClient, model: CountingModel
) -> None:
    client.start_stream(lambda result, error: None)
    with refused_once(model):
        client.async_stream_infer("fake", [row(1, 1)])
    wait_until(lambda: model.depth() == 1, 10, "it is asked again")

    client.stop_stream(cancel_requests=True)

    wait_until(lambda: model.depth() == 0, 10, "it is off the queue")
    assert finish(model) == [FIRST]


def test_a_flood_of_calls_that_are_cancelled_does_not_harm_one_that_stays(
    client: InferenceServerClient, model: CountingModel
) -> None:
    def ignore(result: Any, error: Any) -> None:
        pass

    calls = [client.async_infer("fake", [row(9, 9)], ignore) for _ in range(LEAVING)]
    with ThreadPoolExecutor(1) as pool:
        wait_until(lambda: model.depth() == LEAVING, 10, "all wait")
        staying = pool.submit(client.infer, "fake", [row(1, 1)])
        wait_until(lambda: model.depth() == LEAVING + 1, 10, "one more waits")

        for call in calls:
            call.cancel()

        wait_until(lambda: model.depth() == 1, 10, "only that one waits")
        assert model.count("cancelled") == LEAVING
        assert finish(model) == [FIRST, 1.0]
        assert staying.result().as_numpy("y").tolist() == [[2.0, 2.0]]


def test_a_client_timeout_takes_the_request_off_the_queue(
    client: InferenceServerClient, model: CountingModel
) -> None:
    code, _ = refused(client.infer, "fake", [row(1, 1)], client_timeout=SHORT_SECONDS)

    assert code == "DEADLINE_EXCEEDED"
    wait_until(lambda: model.depth() == 0, 10, "it is off the queue")
    counted = lambda: model.count("cancelled") + model.count("expired")  # noqa: E731
    wait_until(lambda: counted() == 1, 10, "it is counted")
    assert finish(model) == [FIRST]


def test_a_client_that_is_killed_takes_its_request_off_the_queue(
    settings: Settings, model: CountingModel
) -> None:
    ask = (
        "from grpc_process import *\n"
        f"InferenceServerClient({address(settings)!r}).infer('fake', [row(1, 1)])"
    )
    killed = subprocess.Popen(
        [sys.executable, "-c", ask],
        env=os.environ | {"PYTHONPATH": ":".join(sys.path)},
    )
    try:
        wait_until(lambda: model.depth() == 1, 60, "it waits")
    finally:
        killed.kill()
        killed.wait()

    wait_until(lambda: model.count("cancelled") == 1, 10, "it is noticed")
    assert finish(model) == [FIRST]


def test_a_call_s_deadline_bounds_the_request_s_own_timeout(
    client: InferenceServerClient, model: CountingModel
) -> None:
    code, message = refused(client.infer, "fake", [row(1, 1)], timeout=100_000, client_timeout=20)

    assert (code, message) == ("DEADLINE_EXCEEDED", "Request timeout expired")
    wait_until(lambda: model.count("expired") == 1, 10, "it is counted")
    assert finish(model) == [FIRST]


def test_a_request_that_was_answered_is_not_cancelled_by_the_end_of_its_call(
    client: InferenceServerClient, model: CountingModel
) -> None:
    model.gate.set()

    client.infer("fake", [row(1, 1)])

    wait_until(lambda: not model.busy(), 10, "nothing runs")
    assert model.count("cancelled") == 0


def test_an_urgent_request_goes_before_those_that_wait(
    client: InferenceServerClient, model: CountingModel
) -> None:
    with ThreadPoolExecutor(3) as pool:
        for value, priority in ((1.0, 2), (2.0, 2), (3.0, 1)):
            pool.submit(client.infer, "fake", [row(value, 0)], priority=priority)
            wait_until(lambda: model.depth() == value, 10, "it waits")  # noqa: B023

        assert finish(model) == [FIRST, 3.0, 1.0, 2.0]


def test_a_priority_that_the_model_lacks_is_refused(
    client: InferenceServerClient, model: CountingModel
) -> None:
    code, message = refused(client.infer, "fake", [row(1, 1)], priority=3)

    assert code == "INVALID_ARGUMENT"
    assert "the levels 1 to 2" in message


@pytest.mark.parametrize("timeout", [-1, 3_600_000_001])
def test_a_timeout_that_cannot_be_is_refused(
    client: InferenceServerClient, model: CountingModel, timeout: int
) -> None:
    assert refused(client.infer, "fake", [row(1, 1)], timeout=timeout)[0] == "INVALID_ARGUMENT"
