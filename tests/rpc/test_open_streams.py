"""Streams and calls that stay open: they hold up nobody, and end."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from queue import SimpleQueue
from threading import Event, Thread
from types import SimpleNamespace
from typing import Any, cast

import grpc
import numpy as np
import pytest
from counting_model import CountingModel, counting_model
from ferry_processes import free_port
from grpc_process import address, grpc_client, row, running_grpc
from tritonclient.grpc import service_pb2
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub
from waiting import wait_until

from api.metrics.refusals import Refusals
from api.rpc.door import MOST_ARRIVING, MOST_FIRST, Caller, Door
from api.rpc.places import MAX_STREAMS, PUSHED_OUT, OpenStreams, Places
from api.rpc.stream import Stream
from shared.errors import QueueFull, UnknownModel
from shared.settings import Settings
from shared.wire.client import connect
from siege.http2 import HeldCalls

INFER, STREAM, HEALTH = (
    "/inference.GRPCInferenceService/ModelInfer",
    "/inference.GRPCInferenceService/ModelStreamInfer",
    "/grpc.health.v1.Health/Check",
)
MANY = 2000
THREADS = 4
REQUEST = service_pb2.ModelInferRequest(
    model_name="fake",
    inputs=[{"name": "x", "datatype": "FP32", "shape": [1, 2]}],
    raw_input_contents=[np.float32([1, 2]).tobytes()],
)
MESSAGE = b"\0" + REQUEST.ByteSize().to_bytes(4, "big") + REQUEST.SerializeToString()


@pytest.fixture(scope="module")
def settings(redis_url: str) -> Settings:
    """Settings of this file's server: few places."""
    return Settings(
        redis_url=redis_url, key_prefix="open-streams", grpc_port=free_port(),
        grpc_threads=THREADS, request_timeout_seconds=120, max_waiting=MANY,
    )  # fmt: skip


@pytest.fixture(scope="module")
def model(settings: Settings) -> Iterator[CountingModel]:
    with counting_model(settings) as model, running_grpc(settings):
        yield model


@contextmanager
def held(settings: Settings, path: str, count: int, message: bytes = b"") -> Iterator[list[Any]]:
    """Hold so many calls on twenty connections."""
    connections = [HeldCalls(settings.grpc_port) for _ in range(20)]
    try:
        for number in range(count):
            connections[number % 20].begin(path, message)
        yield connections
    finally:
        for connection in connections:
            connection.close()


def ended(connections: list[HeldCalls]) -> int:
    return sum(connection.look() for connection in connections)


def check_served(settings: Settings) -> None:
    """Ask once in each way."""
    found: SimpleQueue[Any] = SimpleQueue()
    with grpc_client(settings) as client:
        assert client.is_server_live(client_timeout=60)
        result = client.infer("fake", [row(1, 2)], client_timeout=60)
        assert result.as_numpy("y").tolist() == [[2.0, 4.0]]
        client.start_stream(lambda result, error: found.put(error or result), stream_timeout=60)
        client.async_stream_infer("fake", [row(3, 4)])
        assert found.get(timeout=60).as_numpy("y").tolist() == [[6.0, 8.0]]
        client.stop_stream()


def test_beside_thousands_of_idle_streams_others_are_served(
    settings: Settings, model: CountingModel
) -> None:
    with held(settings, STREAM, MANY) as connections:
        check_served(settings)
        wait_until(lambda: ended(connections) >= MANY - MAX_STREAMS, 30, "the longest idle end")
        check_served(settings)


@pytest.mark.parametrize("path", [INFER, HEALTH])
def test_beside_thousands_of_calls_without_a_message_others_are_served(
    settings: Settings, model: CountingModel, path: str
) -> None:
    half = MESSAGE[: len(MESSAGE) // 2]
    with held(settings, path, MANY, half) as connections:
        check_served(settings)
        most = THREADS + MOST_ARRIVING + MOST_FIRST
        wait_until(lambda: ended(connections) >= MANY - most, 30, "the others are refused")
        check_served(settings)


def test_slow_uploads_are_answered_or_told_to_come_again() -> None:
    """The oldest were cancelled, which no client tries again."""
    door = Door(cast(Any, SimpleNamespace(
        settings=Settings(grpc_threads=THREADS, request_timeout_seconds=30.0),
        guard=None, tracing=None, refusals=None,
    )))  # fmt: skip
    most, gate = THREADS + MOST_ARRIVING, Event()
    slow = [Upload("a", gate) for _ in range(most)]
    with ThreadPoolExecutor(most + 1) as threads:
        begun = [threads.submit(door.first, iter(each), cast(Any, each)) for each in slow]
        wait_until(lambda: all(each.is_asked.is_set() for each in slow), 30, "all wait")
        with pytest.raises(QueueFull, match=f"{most} calls wait"):
            door.first(iter([b"a"]), cast(Any, Upload("a", gate)))
        assert door.first(iter([b"b"]), cast(Any, Upload("b", gate))) == b"b", "another connection"

        door._patience_seconds = 0.0
        assert door.first(iter([b"c"]), cast(Any, Upload("a", gate))) == b"c", "one was too late"
        gate.set()
        assert [each.result(30) for each in begun] == [b"slow"] * most
    assert sum(each.is_cancelled for each in slow) == 1


class Upload:
    """In the place of a call's context and of its messages, of which the first comes late."""

    def __init__(self, connection: str, gate: Event) -> None:
        self._connection, self._gate = connection, gate
        self.is_asked = Event()
        self.is_cancelled = False

    def __iter__(self) -> Iterator[bytes]:
        self.is_asked.set()
        assert self._gate.wait(60)
        yield b"slow"

    def peer(self) -> str:
        return self._connection

    def cancel(self) -> None:
        self.is_cancelled = True


def test_a_stream_that_waits_for_its_model_is_not_pushed_out(
    settings: Settings, model: CountingModel
) -> None:
    model.gate.clear()
    found: SimpleQueue[Any] = SimpleQueue()
    with grpc_client(settings) as client:
        client.start_stream(lambda result, error: found.put(error or result))
        client.async_stream_infer("fake", [row(3, 4)])
        wait_until(model.busy, 10, "it is at work")
        with held(settings, STREAM, MAX_STREAMS + 10) as connections:
            wait_until(lambda: ended(connections) >= 11, 10, "others make room")
            model.gate.set()
            assert found.get(timeout=60).as_numpy("y").tolist() == [[6.0, 8.0]]
        client.stop_stream()


def test_an_idle_stream_is_told_why_it_ends(settings: Settings, model: CountingModel) -> None:
    short = replace(settings, grpc_port=free_port(), grpc_idle_seconds=0.5)
    asked: SimpleQueue[Any] = SimpleQueue()
    asked.put(REQUEST)
    with running_grpc(short), grpc.insecure_channel(address(short)) as channel:
        answers = GRPCInferenceServiceStub(channel).ModelStreamInfer(iter(asked.get, None))
        assert next(answers).error_message == ""
        with pytest.raises(grpc.RpcError) as raised:
            next(answers)
        asked.put(None)

    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
    assert raised.value.details() == "the stream was idle for 0.5 s, which is the limit"


def test_a_stream_that_ends_for_idleness_is_no_refusal(redis_url: str) -> None:
    short = Settings(
        redis_url=redis_url, key_prefix="idle-streams", grpc_port=free_port(), grpc_idle_seconds=0.1
    )
    asked: SimpleQueue[Any] = SimpleQueue()
    refusals = Refusals(connect(redis_url), short.key_prefix)
    with running_grpc(short), grpc.insecure_channel(address(short)) as channel:
        stub = GRPCInferenceServiceStub(channel)
        with pytest.raises(grpc.RpcError, match="idle"):
            next(stub.ModelStreamInfer(iter(asked.get, None)))
        asked.put(None)
        with pytest.raises(grpc.RpcError):
            stub.ModelInfer(REQUEST)
        wait_until(lambda: bool(refusals.counted()), 30, "what came after it is counted")

    assert refusals.counted() == {UnknownModel.code: 1}


# One at a time.


class Calls:
    """In the place of InferCalls: `while_pushing` is called in the middle of each push."""

    def __init__(self, while_pushing: Any = lambda: None) -> None:
        self._while_pushing = while_pushing

    def push(self, _request: Any, _seconds: float, _caller: Any, then: Any, *_: Any) -> Any:
        self._while_pushing()
        then()
        return None

    def respond(self, _asked: Any, response: Any) -> None:
        response.model_name = "fake"


def stream_of(requests: Iterator[bytes], calls: Any, seconds: float = 30.0) -> Stream:
    context = SimpleNamespace(
        add_callback=lambda _: True, time_remaining=lambda: 30.0, peer=lambda: "a"
    )
    call = SimpleNamespace(
        context=context,
        key=None,
        known_as="",
        caller=Caller(),
        let_in=lambda: None,
        tell=lambda *_: None,
        begin_trace=lambda _: None,
    )
    return Stream(calls, Places(8), requests, cast(Any, call), seconds)


def test_what_is_being_pushed_when_the_server_stops_is_answered() -> None:
    """Its entry stood behind the end of the stream, and its client waited for ever."""
    stopping: list[Thread] = []

    def stop() -> None:
        stopping.append(Thread(target=stream.finish))
        stopping[0].start()
        stopping[0].join(0.2)  # it has said that the stream ends, or waits for this push

    asked = iter([REQUEST.SerializeToString()])
    stream = stream_of(asked, Calls(stop))
    found = []
    with suppress(QueueFull):  # unless the client was heard to have ended it
        found.extend(stream.answers())

    assert [each.infer_response.model_name for each in found] == ["fake"]
    stopping[0].join(30)


class Opened:
    """In the place of a stream."""

    def __init__(self, number: int) -> None:
        self.is_idle = True
        self.connection = "all" if number else "the first's"
        self.moved_at = float(number)
        self.reasons: list[str] = []

    def end(self, reason: str) -> None:
        self.reasons.append(reason)


def test_of_the_connection_with_most_idle_streams_the_longest_idle_makes_room() -> None:
    streams, opened = OpenStreams(), [Opened(number) for number in range(MAX_STREAMS + 3)]
    opened[5].moved_at = -1.0
    opened[1].is_idle = False
    with ExitStack() as stack:
        for each in opened[:-1]:
            stack.enter_context(streams.place(cast(Any, each)))
        assert {each.moved_at: each.reasons for each in opened if each.reasons} == {
            -1.0: [PUSHED_OUT], 2.0: [PUSHED_OUT],
        }  # fmt: skip

        for each in opened:
            each.is_idle = False
        with pytest.raises(QueueFull, match="streams are at work"):
            stack.enter_context(streams.place(cast(Any, opened[-1])))
    with streams.place(cast(Any, opened[-1])):
        pass
