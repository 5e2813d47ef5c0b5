"""Streams of requests: many under way at once, answered in order, each error with its request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import grpc
import numpy as np
import pytest
from counting_model import POISON, CountingModel, counting_model
from ferry_processes import free_port
from grpc_process import address, grpc_client, row, running_grpc
from tritonclient.grpc import InferenceServerClient, aio, service_pb2
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub
from tritonclient.utils import InferenceServerException
from waiting import wait_until

from api.rpc.stream import FINAL, MAX_STREAM_REQUESTS
from shared.settings import Settings

FEW, FOR_STREAMS = 4, 3
"""Places of requests, and those that streams may have of them."""
Request = service_pb2.ModelInferRequest


@pytest.fixture(scope="module")
def settings(redis_url: str) -> Settings:
    """Settings of this file's server."""
    return Settings(
        redis_url=redis_url, key_prefix="grpc-stream", grpc_port=free_port(),
        request_timeout_seconds=120,
    )  # fmt: skip


@pytest.fixture(scope="module")
def served(settings: Settings) -> Iterator[CountingModel]:
    """A model of single rows behind a real server."""
    with counting_model(settings) as model, running_grpc(settings):
        yield model


@pytest.fixture
def model(served: CountingModel) -> Iterator[CountingModel]:
    """The same, with nothing computed or counted yet, and its gate open again in the end."""
    wait_until(lambda: not served.busy(), 10, "nothing runs")
    served.computed.clear()
    served.redis.delete(served.keys.counts)
    yield served
    served.gate.set()


@pytest.fixture
def stub(settings: Settings, model: CountingModel) -> Iterator[GRPCInferenceServiceStub]:
    with grpc.insecure_channel(address(settings)) as channel:
        yield GRPCInferenceServiceStub(channel)


@contextmanager
def streaming(settings: Settings) -> Iterator[tuple[InferenceServerClient, SimpleQueue[Any]]]:
    """Yield a client with an open stream, and the queue that it calls back into."""
    found: SimpleQueue[Any] = SimpleQueue()
    with grpc_client(settings) as client:
        client.start_stream(lambda result, error: found.put(error or result))
        try:
            yield client, found
        except BaseException:
            client.stop_stream(cancel_requests=True)
            raise
        client.stop_stream()


def take(found: SimpleQueue[Any], how_many: int) -> list[Any]:
    return [found.get(timeout=20) for _ in range(how_many)]


def request(value: float, request_id: str = "", model_name: str = "fake") -> Request:
    return Request(
        model_name=model_name,
        id=request_id,
        inputs=[Request.InferInputTensor(name="x", datatype="FP32", shape=[1, 2])],
        raw_input_contents=[np.full((1, 2), value, np.float32).tobytes()],
    )


def numbers(response: Any) -> Any:
    return np.frombuffer(response.infer_response.raw_output_contents[0], np.float32).tolist()


def test_a_stream_is_answered_in_the_order_it_was_asked(
    settings: Settings, model: CountingModel
) -> None:
    with streaming(settings) as (client, found):
        for number in range(500):
            client.async_stream_infer("fake", [row(number, 0)], request_id=str(number))
        results = take(found, 500)

    assert [each.get_response().id for each in results] == [str(n) for n in range(500)]
    assert [each.as_numpy("y")[0, 0] for each in results] == [2.0 * n for n in range(500)]


def test_the_requests_of_a_stream_wait_side_by_side_up_to_a_limit(
    settings: Settings, model: CountingModel
) -> None:
    model.gate.clear()
    with streaming(settings) as (client, found):
        for number in range(3 * MAX_STREAM_REQUESTS):
            client.async_stream_infer("fake", [row(number, 0)])
        # One is being computed; the client's others stay unread.
        wait_until(lambda: model.depth() == MAX_STREAM_REQUESTS - 1, 10, "as many wait as may")
        assert found.empty()
        model.gate.set()
        take(found, 3 * MAX_STREAM_REQUESTS)

    assert model.computed == [float(number) for number in range(3 * MAX_STREAM_REQUESTS)]


def test_an_error_answers_its_own_request_and_the_stream_goes_on(
    stub: GRPCInferenceServiceStub,
) -> None:
    asked = [
        request(1, "a"),
        request(1, "unknown", "unknown"),
        request(POISON, "poison"),
        Request(model_name="fake", id="empty"),
        request(2, "b"),
    ]

    found = list(stub.ModelStreamInfer(iter(asked)))

    assert [each.infer_response.id for each in found] == [each.id for each in asked]
    assert [each.error_message != "" for each in found] == [False, True, True, True, False]
    assert found[1].error_message == "Request for unknown model: 'unknown' is not found"
    assert f"cannot stand {POISON}" in found[2].error_message
    assert found[3].error_message.startswith("missing input 'x'")
    assert not found[2].infer_response.outputs
    assert (numbers(found[0]), numbers(found[4])) == ([2.0, 2.0], [4.0, 4.0])


def test_triton_s_client_is_told_of_an_error_by_its_callback(
    settings: Settings, model: CountingModel
) -> None:
    with streaming(settings) as (client, found):
        client.async_stream_infer("unknown", [row(1, 2)])
        client.async_stream_infer("fake", [row(1, 2)])
        error, result = take(found, 2)

    assert isinstance(error, InferenceServerException)
    assert error.message() == "Request for unknown model: 'unknown' is not found"
    assert result.as_numpy("y").tolist() == [[2.0, 4.0]]


def test_every_answer_is_marked_as_its_request_s_last(
    settings: Settings, model: CountingModel
) -> None:
    with streaming(settings) as (client, found):
        client.async_stream_infer("fake", [row(1, 2)], enable_empty_final_response=True)
        (result,) = take(found, 1)

    assert result.get_response().parameters[FINAL].bool_param is True


def test_a_message_that_is_none_is_answered_and_the_stream_goes_on(
    settings: Settings, model: CountingModel
) -> None:
    asked = [b"\xff\xff\xff", request(1, "a").SerializeToString()]
    with grpc.insecure_channel(address(settings)) as channel:
        ask = channel.stream_stream(
            "/inference.GRPCInferenceService/ModelStreamInfer",
            response_deserializer=service_pb2.ModelStreamInferResponse.FromString,
        )
        bad, good = ask(iter(asked), timeout=30)

    assert bad.error_message == "the message is no ModelInferRequest"
    assert numbers(good) == [2.0, 2.0]


def test_an_open_stream_answers_before_more_is_asked(stub: GRPCInferenceServiceStub) -> None:
    asked: SimpleQueue[Request | None] = SimpleQueue()
    answers = stub.ModelStreamInfer(iter(asked.get, None))

    for number in range(3):
        asked.put(request(number))
        assert numbers(next(answers)) == [2.0 * number] * 2

    asked.put(None)
    assert list(answers) == []


def test_a_stream_without_a_request_ends_without_an_answer(stub: GRPCInferenceServiceStub) -> None:
    assert list(stub.ModelStreamInfer(iter([]))) == []


def test_a_stream_that_is_cancelled_takes_all_it_asked_off_the_queue(
    settings: Settings, model: CountingModel
) -> None:
    model.gate.clear()
    with streaming(settings) as (client, _):
        for number in range(10):
            client.async_stream_infer("fake", [row(number, 0)])
        wait_until(lambda: model.depth() == 9, 10, "all wait but the one that is computed")

        client.stop_stream(cancel_requests=True)

        wait_until(lambda: model.depth() == 0, 10, "they are off the queue")
        wait_until(lambda: model.count("cancelled") == 10, 10, "they are counted")
    model.gate.set()
    wait_until(lambda: not model.busy(), 10, "the one that was computed is done")
    assert model.computed == [0.0]


def test_a_stream_s_deadline_holds_for_each_of_its_requests(
    stub: GRPCInferenceServiceStub, model: CountingModel
) -> None:
    model.gate.clear()
    asked: SimpleQueue[Request | None] = SimpleQueue()
    for number in range(3):
        asked.put(request(number))

    answers = stub.ModelStreamInfer(iter(asked.get, None), timeout=0.5)

    with pytest.raises(grpc.RpcError) as raised:
        list(answers)
    assert raised.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    asked.put(None)
    wait_until(lambda: model.depth() == 0, 10, "they are off the queue")


def test_a_stream_gives_its_place_and_its_threads_back(
    settings: Settings, model: CountingModel
) -> None:
    few = Settings(
        redis_url=settings.redis_url,
        key_prefix=settings.key_prefix,
        grpc_port=free_port(),
        grpc_threads=FEW,
        request_timeout_seconds=120,
    )
    with running_grpc(few) as server:
        threads = Path(f"/proc/{server.pid}/task")
        ask_in_a_stream(few)
        before = len(list(threads.iterdir()))
        for _ in range(20):
            ask_in_a_stream(few)
        for _ in range(5):
            leave_a_stream(few, model)
        ask_in_a_stream(few)
        wait_until(lambda: len(list(threads.iterdir())) <= before + 2, 10, "no threads are left")


def leave_a_stream(settings: Settings, model: CountingModel) -> None:
    """Ask for more than may be under way and cancel the whole."""
    model.gate.clear()
    with streaming(settings) as (client, _):
        for number in range(2 * MAX_STREAM_REQUESTS):
            client.async_stream_infer("fake", [row(number, 0)])
        wait_until(lambda: model.depth() == FOR_STREAMS - 1, 10, "as many wait as have places")
        client.stop_stream(cancel_requests=True)
    wait_until(lambda: model.depth() == 0, 10, "they are off the queue")
    model.gate.set()
    wait_until(lambda: not model.busy(), 10, "nothing runs")


def ask_in_a_stream(settings: Settings) -> None:
    with streaming(settings) as (client, found):
        client.async_stream_infer("fake", [row(1, 2)])
        assert take(found, 1)[0].as_numpy("y").tolist() == [[2.0, 4.0]]


# asyncio.


def test_the_asyncio_client_infers_and_streams(settings: Settings, model: CountingModel) -> None:
    async def requests() -> AsyncIterator[dict[str, Any]]:
        for number in range(100):
            yield {"model_name": "fake", "inputs": [row(number, 0)], "request_id": str(number)}

    async def ask() -> tuple[list[float], list[tuple[Any, Any]]]:
        async with aio.InferenceServerClient(address(settings)) as client:
            assert await client.is_server_live()
            singles = await asyncio.gather(
                *(client.infer("fake", [row(number, 0)]) for number in range(64))
            )
            streamed = [item async for item in client.stream_infer(requests())]
        return [each.as_numpy("y")[0, 0] for each in singles], streamed

    singles, streamed = asyncio.run(ask())

    assert singles == [2.0 * number for number in range(64)]
    assert [result.get_response().id for result, _ in streamed] == [str(n) for n in range(100)]
    assert [error for _, error in streamed if error] == []


def test_many_streams_at_once_do_not_mix(settings: Settings, model: CountingModel) -> None:
    async def requests(stream: int) -> AsyncIterator[dict[str, Any]]:
        for number in range(20):
            yield {"model_name": "fake", "inputs": [row(stream, number)]}

    async def ask(stream: int) -> list[list[float]]:
        async with aio.InferenceServerClient(address(settings)) as client:
            found = [item async for item in client.stream_infer(requests(stream))]
        return [result.as_numpy("y")[0].tolist() for result, _ in found]

    async def all_streams() -> list[list[list[float]]]:
        return await asyncio.gather(*map(ask, range(16)))

    found = asyncio.run(all_streams())

    assert found == [[[2.0 * s, 2.0 * n] for n in range(20)] for s in range(16)]
