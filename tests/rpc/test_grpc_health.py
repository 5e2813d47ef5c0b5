"""gRPC's own health service, and connections that clients ping."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from queue import SimpleQueue

import grpc
import pytest
from counting_model import CountingModel, counting_model
from ferry_processes import free_port
from google.protobuf import wrappers_pb2
from grpc_process import address, running_grpc
from registered import register, spec

from shared.model_spec import TensorSpec
from shared.settings import Settings
from shared.wire.client import connect

SERVING, NOT_SERVING, SERVICE_UNKNOWN = 1, 2, 3
PING_SECONDS = 0.05


@pytest.fixture(scope="module")
def settings(redis_url: str) -> Settings:
    """Settings of this file's server."""
    return Settings(redis_url=redis_url, key_prefix="grpc-health", grpc_port=free_port())


@pytest.fixture(scope="module")
def model(settings: Settings) -> Iterator[CountingModel]:
    """The model `fake`."""
    with counting_model(settings, max_batch_size=32) as model:
        yield model


@pytest.fixture(scope="module")
def channel(settings: Settings, model: CountingModel) -> Iterator[grpc.Channel]:
    """A connection to a real server."""
    with running_grpc(settings), grpc.insecure_channel(address(settings)) as channel:
        yield channel


@pytest.fixture
def absent(settings: Settings) -> Iterator[str]:
    """Another model, which nobody serves, for one test."""
    name = "absent"
    register(settings, spec(name, TensorSpec(name="x", datatype="FP32", dims=(2,))), ready=False)
    yield name
    connect(settings.redis_url).hdel(f"{settings.key_prefix}:models", f"{name}/1")


# On the wire a wrapper of a string is HealthCheckRequest, one of a number HealthCheckResponse:
# bytes that were not made by the messages under test.
def asked(service: str) -> bytes:
    return wrappers_pb2.StringValue(value=service).SerializeToString()


def status(answer: bytes) -> int:
    return wrappers_pb2.Int32Value.FromString(answer).value


def check(channel: grpc.Channel, service: str) -> int:
    return status(channel.unary_unary("/grpc.health.v1.Health/Check")(asked(service), timeout=10))


def wait_for(channel: grpc.Channel, service: str, wanted: int) -> None:
    for answer in channel.unary_stream("/grpc.health.v1.Health/Watch")(asked(service), timeout=20):
        if status(answer) == wanted:
            return


@pytest.mark.parametrize("service", ["", "inference.GRPCInferenceService", "fake", "fake/1"])
def test_what_serves_is_serving(channel: grpc.Channel, service: str) -> None:
    wait_for(channel, service, SERVING)

    assert check(channel, service) == SERVING


def test_a_model_that_nobody_serves_is_not_serving(channel: grpc.Channel, absent: str) -> None:
    wait_for(channel, absent, NOT_SERVING)

    assert check(channel, absent) == check(channel, "") == NOT_SERVING
    assert check(channel, "fake") == SERVING


@pytest.mark.parametrize("service", ["nobody", "fake/7", "grpc.health.v1.Health"])
def test_an_unknown_name_is_not_found(channel: grpc.Channel, service: str) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        check(channel, service)

    assert raised.value.code() == grpc.StatusCode.NOT_FOUND


def test_all_are_listed(channel: grpc.Channel) -> None:
    wait_for(channel, "", SERVING)

    found = channel.unary_unary("/grpc.health.v1.Health/List")(b"", timeout=10)

    for name in ("", "inference.GRPCInferenceService", "fake"):
        key, value = name.encode(), b"\x12\x02\x08\x01"
        entry = b"\x0a" + bytes([len(key)]) + key + value
        assert b"\x0a" + bytes([len(entry)]) + entry in found


def test_a_watch_tells_of_each_change(channel: grpc.Channel, settings: Settings) -> None:
    told: SimpleQueue[int] = SimpleQueue()
    watch = channel.unary_stream("/grpc.health.v1.Health/Watch")(asked("later"), timeout=30)

    def listen() -> None:
        try:
            for answer in watch:
                told.put(status(answer))
        except grpc.RpcError:
            pass  # it is cancelled

    with ThreadPoolExecutor(1) as threads:
        threads.submit(listen)
        assert told.get(timeout=10) == SERVICE_UNKNOWN

        later = spec("later", TensorSpec(name="x", datatype="FP32", dims=(2,)))
        register(settings, later, ready=False)
        assert told.get(timeout=10) == NOT_SERVING

        register(settings, later)
        assert told.get(timeout=10) == SERVING
        watch.cancel()
    redis = connect(settings.redis_url)
    redis.hdel(f"{settings.key_prefix}:models", "later/1")
    redis.hdel(f"{settings.key_prefix}:instances", "later-0")


def test_a_stop_ends_a_watch_and_says_so(settings: Settings, model: CountingModel) -> None:
    own = replace(settings, grpc_port=free_port())
    with running_grpc(own) as process, grpc.insecure_channel(address(own)) as channel:
        watch = channel.unary_stream("/grpc.health.v1.Health/Watch")(asked("fake"), timeout=30)
        assert status(next(watch)) in (SERVING, SERVICE_UNKNOWN)
        process.terminate()

        assert [status(answer) for answer in watch][-1] == NOT_SERVING
        assert process.wait(timeout=20) == 0


def test_a_client_that_pings_keeps_its_connection(
    settings: Settings, channel: grpc.Channel
) -> None:
    # The library by itself ends a connection at the third ping within five minutes, here after 3 s.
    options = [
        ("grpc.keepalive_time_ms", int(1000 * PING_SECONDS)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    ]
    with grpc.insecure_channel(address(settings), options=options) as pinging:
        watch = pinging.unary_stream("/grpc.health.v1.Health/Watch")(asked(""), timeout=4.5)
        with pytest.raises(grpc.RpcError) as raised:
            for _ in watch:
                pass

    assert raised.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED, raised.value.details()
