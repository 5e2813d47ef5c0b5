"""What the gRPC server takes at most, what it says beyond that, and how it starts."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from os import environ
from pathlib import Path

import grpc
import numpy as np
import pytest
from counting_model import CountingModel, counting_model
from ferry_processes import ROOT, environment, free_port
from grpc_process import address, grpc_client, refused, row, running_grpc, tensor
from tritonclient.grpc import service_pb2
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub
from waiting import wait_until

from api.rpc.errors import MAX_DETAIL_BYTES, status_code
from api.rpc.places import STREAMS_LEAVE
from api.rpc.server import OTHER_THREADS, SPARE_THREADS
from ferry.up.embedded_valkey import running
from shared.errors import BadRequest, RequestExpired, all_errors
from shared.settings import Settings

LIMIT_BYTES = 100_000
THREADS = 4
MANY = 1000


@pytest.fixture(scope="module")
def settings(redis_url: str) -> Settings:
    """Settings of this file's server: small limits."""
    return Settings(
        redis_url=redis_url,
        key_prefix="grpc-limits",
        grpc_port=free_port(),
        grpc_threads=THREADS,
        max_body_bytes=LIMIT_BYTES,
    )


@pytest.fixture(scope="module")
def log_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the server logs."""
    return tmp_path_factory.mktemp("log") / "log"


@pytest.fixture(scope="module")
def model(settings: Settings, log_file: Path) -> Iterator[CountingModel]:
    """A model of wide rows behind a real server."""
    with counting_model(settings, max_batch_size=1) as model, running_grpc(settings, log_file):
        yield model


@contextmanager
def stubbed(settings: Settings) -> Iterator[GRPCInferenceServiceStub]:
    with grpc.insecure_channel(address(settings)) as channel:
        yield GRPCInferenceServiceStub(channel)


def asked_for(value: float) -> service_pb2.ModelInferRequest:
    return service_pb2.ModelInferRequest(
        model_name="fake",
        inputs=[{"name": "x", "datatype": "FP32", "shape": [1, 2]}],
        raw_input_contents=[np.float32([value, 0]).tobytes()],
    )


# Bytes.


def test_a_message_above_the_limit_is_refused_and_the_next_one_taken(
    settings: Settings, model: CountingModel
) -> None:
    with grpc_client(settings) as client:
        code, message = refused(
            client.infer, "fake", [tensor(np.zeros((1, LIMIT_BYTES), np.float32))]
        )

        assert code == "RESOURCE_EXHAUSTED"
        assert str(LIMIT_BYTES) in message
        assert client.infer("fake", [row(1, 2)]).as_numpy("y").tolist() == [[2.0, 4.0]]


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_a_small_message_that_grows_above_the_limit_is_refused(
    settings: Settings, model: CountingModel, algorithm: str
) -> None:
    bomb = tensor(np.zeros((1, 10 * LIMIT_BYTES), np.float32))

    with grpc_client(settings) as client:
        code, message = refused(client.infer, "fake", [bomb], compression_algorithm=algorithm)

    assert code == "RESOURCE_EXHAUSTED", message


def test_a_long_error_arrives_shortened(settings: Settings, model: CountingModel) -> None:
    name = "ö" * 20_000

    with grpc_client(settings) as client:
        code, message = refused(client.infer, name, [row(1, 2)])

    assert code == "NOT_FOUND"
    assert message.startswith("Request for unknown model: 'öööö")
    assert MAX_DETAIL_BYTES - 4 < len(message.encode()) <= MAX_DETAIL_BYTES


def test_bytes_that_are_no_message_are_refused(settings: Settings, model: CountingModel) -> None:
    with grpc.insecure_channel(address(settings)) as channel:
        ask = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        with pytest.raises(grpc.RpcError) as raised:
            ask(b"\xff\xff\xff", timeout=10)

    assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert raised.value.details() == "the message is no ModelInferRequest"


# Calls.


def test_calls_above_the_limit_are_refused_and_health_still_answered(
    settings: Settings, model: CountingModel
) -> None:
    model.gate.clear()
    with grpc_client(settings) as client, stubbed(settings) as stub, ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(client.infer, "fake", [row(n, 0)]) for n in range(THREADS)]
        wait_until(lambda: model.depth() == THREADS - 1 and model.busy(), 10, "all are under way")

        with pytest.raises(grpc.RpcError) as raised:
            stub.ModelInfer(service_pb2.ModelInferRequest(model_name="fake"))

        assert client.is_server_live() and client.is_model_ready("fake")
        streamed = stub.ModelStreamInfer(iter([asked_for(5)]), timeout=30)
        model.gate.set()
        answers = [each.result().as_numpy("y")[0, 0] for each in asked]
        assert [each.error_message for each in streamed] == [""], "a stream waits for a place"

    assert raised.value.code() == grpc.StatusCode.UNAVAILABLE
    assert raised.value.details().startswith(f"{THREADS} infer calls are under way")
    assert ("retry-after", "1") in raised.value.trailing_metadata()
    assert answers == [2.0 * n for n in range(THREADS)]


def test_streams_take_a_place_for_each_request_and_leave_some_to_single_calls(
    settings: Settings, model: CountingModel
) -> None:
    model.gate.clear()
    for_streams = THREADS - THREADS // STREAMS_LEAVE
    with grpc_client(settings) as client, stubbed(settings) as stub, ThreadPoolExecutor(1) as pool:
        streamed = stub.ModelStreamInfer(iter([asked_for(n) for n in range(2 * THREADS)]))
        wait_until(lambda: model.depth() == for_streams - 1 and model.busy(), 10, "as many as may")

        single = pool.submit(client.infer, "fake", [row(9, 0)])
        wait_until(lambda: model.depth() == for_streams, 10, "a single call has the last place")
        with pytest.raises(grpc.RpcError) as raised:
            stub.ModelInfer(asked_for(1))
        model.gate.set()

        assert single.result().as_numpy("y")[0, 0] == 18.0
        assert [each.error_message for each in streamed] == [""] * 2 * THREADS
    assert raised.value.code() == grpc.StatusCode.UNAVAILABLE


def test_more_calls_than_there_are_threads_are_refused_at_once(
    settings: Settings, model: CountingModel
) -> None:
    assert THREADS + SPARE_THREADS < 100
    model.gate.clear()
    with stubbed(settings) as stub:
        request = asked_for(0)
        calls = [stub.ModelInfer.future(request, timeout=30) for _ in range(100)]
        wait_until(lambda: sum(call.done() for call in calls) == 100 - THREADS, 10, "refusals")
        model.gate.set()
        codes = [call.code() for call in calls]

    refusals = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert codes.count(grpc.StatusCode.OK) == THREADS
    assert set(codes) - {grpc.StatusCode.OK} <= refusals


def test_when_redis_hangs_no_more_calls_wait_than_may(tmp_path: Path) -> None:
    with running(tmp_path) as valkey:
        hung = Settings(
            redis_url=valkey.url, grpc_port=free_port(), grpc_threads=THREADS, max_waiting=1
        )
        with running_grpc(hung), stubbed(hung) as stub:
            valkey.process.send_signal(signal.SIGSTOP)
            try:
                request = service_pb2.ModelStatisticsRequest()
                calls = [stub.ModelStatistics.future(request, timeout=30) for _ in range(MANY)]
                held = 2 * THREADS + OTHER_THREADS + 1
                wait_until(lambda: sum(call.done() for call in calls) >= MANY - held, 4, "refusals")
                codes = {call.code() for call in calls if call.done()}
            finally:
                valkey.process.send_signal(signal.SIGCONT)
    assert codes == {grpc.StatusCode.RESOURCE_EXHAUSTED}


def test_a_full_queue_is_unavailable_with_a_time_to_come_back(redis_url: str) -> None:
    full = Settings(
        redis_url=redis_url, key_prefix="grpc-full", grpc_port=free_port(), max_queue_size=1
    )
    with counting_model(full) as model, running_grpc(full), stubbed(full) as stub:
        model.gate.clear()
        with grpc_client(full) as client, ThreadPoolExecutor(2) as pool:
            first = pool.submit(client.infer, "fake", [row(1, 2)])
            wait_until(model.busy, 10, "one runs")
            second = pool.submit(client.infer, "fake", [row(1, 2)])
            wait_until(lambda: model.depth() == 1, 10, "one waits")
            with pytest.raises(grpc.RpcError) as raised:
                stub.ModelInfer(asked_for(0))

            model.gate.set()
            first.result(), second.result()
    assert raised.value.code() == grpc.StatusCode.UNAVAILABLE
    assert raised.value.details() == "Exceeds maximum queue size"
    assert dict(raised.value.trailing_metadata())["retry-after"] == "1"


# Codes.


def test_every_error_has_a_code_and_only_our_own_failures_are_internal() -> None:
    codes = {error.code: status_code(error("")) for error in all_errors()}

    internal = {code for code, found in codes.items() if found is grpc.StatusCode.INTERNAL}
    assert {error.code for error in all_errors() if error.status == 500} <= internal
    assert codes[BadRequest.code] is grpc.StatusCode.INVALID_ARGUMENT
    assert codes["unknown_model"] is grpc.StatusCode.NOT_FOUND
    assert codes["payload_too_large"] is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert codes["unsupported"] is grpc.StatusCode.UNIMPLEMENTED
    assert codes["queue_full"] is codes["redis_unavailable"] is grpc.StatusCode.UNAVAILABLE
    assert codes[RequestExpired.code] is grpc.StatusCode.DEADLINE_EXCEEDED
    assert codes["client_left"] is grpc.StatusCode.CANCELLED


def test_a_redis_that_is_away_is_unavailable() -> None:
    away = Settings(redis_url="redis://127.0.0.1:1", grpc_port=free_port())

    with running_grpc(away), grpc_client(away) as client:
        assert client.is_server_live()
        assert not client.is_server_ready()
        code, message = refused(client.infer, "fake", [row(1, 2)])

    assert code == "UNAVAILABLE"
    assert message == "cannot reach Redis, it does not answer"


# Starting.


def test_a_port_that_is_taken_stops_the_start(settings: Settings, model: CountingModel) -> None:
    ended = _start(settings)

    assert ended.returncode == 2
    assert f"FERRY_GRPC_PORT: cannot listen on 127.0.0.1:{settings.grpc_port}" in ended.stderr


def test_it_listens_on_the_address_that_is_set(settings: Settings, model: CountingModel) -> None:
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", settings.grpc_port)) == 0
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.2", settings.grpc_port)) != 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"FERRY_GRPC_PORT": "grpc"}, "FERRY_GRPC_PORT='grpc'"),
        ({"REDIS_URL": ""}, "REDIS_URL is not set"),
    ],
)
def test_a_bad_setting_stops_the_start(
    settings: Settings, changes: dict[str, str], message: str
) -> None:
    ended = _start(replace(settings, grpc_port=free_port()), changes)

    assert ended.returncode == 2
    assert ended.stderr.startswith(f"grpc: {message}")


def _start(
    settings: Settings, changes: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "api.rpc"],
        env=environ | environment(settings) | (changes or {}),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
