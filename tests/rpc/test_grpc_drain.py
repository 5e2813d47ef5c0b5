"""SIGTERM: the gRPC server answers what it has taken, takes no more, and goes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from threading import Event
from typing import Any

import grpc
import pytest
from counting_model import CountingModel, counting_model
from ferry_processes import free_port
from grpc_process import address, grpc_client, refused, row, running_grpc
from tritonclient.grpc import service_pb2
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub
from tritonclient.utils import InferenceServerException
from waiting import wait_until

from api.rpc.service import STOPPING
from api.rpc.stream import MAX_STREAM_REQUESTS
from shared.settings import Settings

CLIENTS = 64


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Settings of one test's server."""
    return Settings(
        redis_url=settings.redis_url, key_prefix=settings.key_prefix, grpc_port=free_port()
    )


@pytest.fixture
def model(settings: Settings) -> Iterator[CountingModel]:
    with counting_model(settings) as model:
        yield model


def test_what_is_under_way_is_answered_and_nothing_new_is_taken(
    settings: Settings, model: CountingModel
) -> None:
    model.gate.clear()
    with (
        running_grpc(settings) as server,
        grpc_client(settings) as client,
        ThreadPoolExecutor(8) as pool,
    ):
        asked = [pool.submit(client.infer, "fake", [row(n, 0)]) for n in range(8)]
        wait_until(lambda: model.depth() == 7 and model.busy(), 10, "all are under way")

        server.terminate()
        wait_until(lambda: _refuses(client), 10, "new calls are refused")
        assert server.poll() is None, "it waits for what is under way"
        model.gate.set()

        assert [each.result().as_numpy("y")[0, 0] for each in asked] == [2.0 * n for n in range(8)]
        assert server.wait(10) == 0
        assert refused(client.infer, "fake", [row(1, 2)])[0] == "UNAVAILABLE"


def test_under_load_every_request_is_answered_or_refused_and_none_is_lost(
    settings: Settings, model: CountingModel
) -> None:
    stopped, told = Event(), Counter[str]()
    answered: list[float] = []

    def ask(number: int) -> None:
        value = float(number)
        while not stopped.is_set():
            try:
                result = client.infer("fake", [row(value, 0)], client_timeout=20)
            except InferenceServerException as error:
                told[str(error.status())] += 1
                return
            assert result.as_numpy("y")[0, 0] == 2 * value
            answered.append(value)
            value += CLIENTS

    with (
        running_grpc(settings) as server,
        grpc_client(settings) as client,
        ThreadPoolExecutor(CLIENTS) as pool,
    ):
        asking = [pool.submit(ask, number) for number in range(CLIENTS)]
        wait_until(lambda: len(answered) > 10 * CLIENTS, 30, "the load is there")

        server.terminate()

        assert server.wait(20) == 0
        for each in asking:
            each.result()
    # Whoever was refused was not computed, and whatever was computed, once or again, was answered.
    assert told == {"StatusCode.UNAVAILABLE": CLIENTS}
    assert {*model.computed} == {*answered}


def test_an_idle_stream_ends_and_one_at_work_is_answered_first(
    settings: Settings, model: CountingModel
) -> None:
    model.gate.clear()
    idle: SimpleQueue[Any] = SimpleQueue()
    found: SimpleQueue[Any] = SimpleQueue()
    with (
        running_grpc(settings) as server,
        grpc.insecure_channel(address(settings)) as channel,
        grpc_client(settings) as client,
    ):
        waiting = GRPCInferenceServiceStub(channel).ModelStreamInfer(iter(idle.get, None))
        client.start_stream(lambda result, error: found.put(error or result))
        for number in range(10):
            client.async_stream_infer("fake", [row(number, 0)], request_id=str(number))
        wait_until(lambda: model.depth() == 9 and model.busy(), 10, "all are under way")

        server.terminate()
        with pytest.raises(grpc.RpcError) as raised:
            list(waiting)
        assert (raised.value.code(), raised.value.details()) == (
            grpc.StatusCode.UNAVAILABLE,
            STOPPING,
        )
        model.gate.set()

        results = [found.get(timeout=60) for _ in range(11)]
        assert server.wait(10) == 0
        client.stop_stream()
        idle.put(service_pb2.ModelInferRequest())
    assert [each.get_response().id for each in results[:10]] == [str(n) for n in range(10)]
    assert results[10].message() == STOPPING


def test_a_stream_says_that_it_was_cut_when_not_all_was_read(
    settings: Settings, model: CountingModel
) -> None:
    found: SimpleQueue[Any] = SimpleQueue()
    with running_grpc(settings) as server, grpc_client(settings) as client:
        # What is asked before the server listens to answers is pushed again, and may run twice.
        client.infer("fake", [row(0, 0)])
        model.gate.clear()
        model.computed.clear()
        client.start_stream(lambda result, error: found.put(error or result))
        for number in range(3 * MAX_STREAM_REQUESTS):
            client.async_stream_infer("fake", [row(number, 0)])
        wait_until(lambda: model.depth() == MAX_STREAM_REQUESTS - 1, 10, "as many wait as may")

        server.terminate()
        wait_until(lambda: _refuses(client), 10, "it is stopping")
        model.gate.set()

        results = [found.get(timeout=60) for _ in range(MAX_STREAM_REQUESTS + 1)]
        assert server.wait(10) == 0
        client.stop_stream()
    assert [each.as_numpy("y")[0, 0] for each in results[:-1]] == [
        2.0 * number for number in range(MAX_STREAM_REQUESTS)
    ]
    assert results[-1].message() == STOPPING
    assert model.computed == [float(n) for n in range(MAX_STREAM_REQUESTS)], model.computed[-3:]


def test_a_stream_that_the_client_has_ended_is_answered_and_ends_well(
    settings: Settings, model: CountingModel
) -> None:
    model.gate.clear()
    asked = [
        service_pb2.ModelInferRequest(
            model_name="fake",
            inputs=[{"name": "x", "datatype": "FP32", "shape": [1, 2]}],
            raw_input_contents=[bytes(8)],
        )
    ]
    with (
        running_grpc(settings) as server,
        grpc.insecure_channel(address(settings)) as channel,
        grpc_client(settings) as client,
    ):
        answers = GRPCInferenceServiceStub(channel).ModelStreamInfer(iter(2 * asked))
        wait_until(lambda: model.depth() == 1 and model.busy(), 10, "both are under way")

        server.terminate()
        wait_until(lambda: _refuses(client), 10, "it is stopping")
        model.gate.set()

        assert [each.error_message for each in answers] == ["", ""]
        assert answers.code() == grpc.StatusCode.OK


def test_a_second_sigterm_changes_nothing(settings: Settings, model: CountingModel) -> None:
    model.gate.clear()
    with (
        running_grpc(settings) as server,
        grpc_client(settings) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        asked = pool.submit(client.infer, "fake", [row(1, 2)])
        wait_until(model.busy, 10, "it is under way")

        server.terminate()
        wait_until(lambda: _refuses(client), 10, "it is stopping")
        server.terminate()
        model.gate.set()

        assert asked.result().as_numpy("y").tolist() == [[2.0, 4.0]]
        assert server.wait(10) == 0


def _refuses(client: Any) -> bool:
    try:
        client.is_server_live(client_timeout=10)
    except InferenceServerException:
        return True
    return False
