"""A key that is revoked, expires or changes counts so on what is open already."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import grpc
import numpy as np
import pytest
from counting_model import CountingModel, counting_model
from ferry_processes import free_port
from google.protobuf import wrappers_pb2
from grpc_process import address, running_grpc
from test_api_keys import made
from tritonclient.grpc import service_pb2
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub
from waiting import wait_until

from api.app import create_app
from api.routes.operations import STREAMS
from shared.access.api_key import ApiKey
from shared.access.key_store import KeysInRedis, add
from shared.settings import Settings
from shared.wire.client import connect

WATCH = "/grpc.health.v1.Health/Watch"
CHANGES: dict[str, tuple[dict[str, Any], grpc.StatusCode]] = {
    "revoked": ({"revoked": 1.0}, grpc.StatusCode.UNAUTHENTICATED),
    "expired": ({"expires": 1.0}, grpc.StatusCode.UNAUTHENTICATED),
    "another role": ({"roles": ("metrics",)}, grpc.StatusCode.PERMISSION_DENIED),
}


@dataclass
class Server:
    """A real gRPC server, its keys and its model."""

    settings: Settings
    model: CountingModel
    stub: GRPCInferenceServiceStub
    channel: grpc.Channel
    store: KeysInRedis

    def add(self, name: str, **fields: Any) -> tuple[ApiKey, Any]:
        """Return a key and the metadata of its calls, once it counts."""
        key, secret = made(name, **fields)
        add(self.store, key)
        metadata = (("x-api-key", secret),)
        wait_until(lambda: self.code(metadata) is grpc.StatusCode.OK, 30, "it counts")
        return key, metadata

    def change(self, key: ApiKey, **fields: Any) -> None:
        changed = key.model_copy(update=fields)
        self.store.change(lambda keys: {**keys, key.id: changed})

    def code(self, metadata: Any) -> grpc.StatusCode:
        """Return how a call without a model of the role `infer` ends."""
        call = self.stub.ServerMetadata.future(
            service_pb2.ServerMetadataRequest(), metadata=metadata, timeout=30
        )
        found: grpc.StatusCode = call.code()
        return found


@pytest.fixture(scope="module")
def server(redis_url: str) -> Iterator[Server]:
    settings = Settings(redis_url=redis_url, key_prefix="revoked-keys", grpc_port=free_port())
    store = KeysInRedis(connect(redis_url), settings.key_prefix)
    with (
        counting_model(settings, max_batch_size=4) as model,
        running_grpc(settings),
        grpc.insecure_channel(address(settings)) as channel,
    ):
        yield Server(settings, model, GRPCInferenceServiceStub(channel), channel, store)


class OpenStream:
    """A stream of requests, one at a time."""

    def __init__(self, server: Server, metadata: Any) -> None:
        self._asked: SimpleQueue[Any] = SimpleQueue()
        requests = iter(self._asked.get, None)
        self.answers = server.stub.ModelStreamInfer(requests, metadata=metadata, timeout=60)

    def send(self, value: float) -> None:
        self._asked.put(
            service_pb2.ModelInferRequest(
                model_name="fake", id=str(value),
                inputs=[{"name": "x", "datatype": "FP32", "shape": [1, 2]}],
                raw_input_contents=[np.float32([value, 0]).tobytes()],
            )
        )  # fmt: skip

    def ask(self, value: float) -> str:
        self.send(value)
        return str(next(self.answers).error_message)

    def close(self) -> None:
        self._asked.put(None)


@pytest.mark.parametrize("change", CHANGES)
def test_an_open_stream_ends_once_its_key_is_good_no_more(server: Server, change: str) -> None:
    fields, code = CHANGES[change]
    key, metadata = server.add(f"of-{change.replace(' ', '-')}")
    stream = OpenStream(server, metadata)
    assert stream.ask(1) == ""
    server.model.gate.clear()
    stream.send(2)
    wait_until(server.model.busy, 30, "a request is under way")

    server.change(key, **fields)
    wait_until(lambda: server.code(metadata) is code, 30, "single calls are refused")
    stream.send(3)
    server.model.gate.set()

    assert next(stream.answers).infer_response.id == "2", "what was under way is answered"
    with pytest.raises(grpc.RpcError) as raised:
        next(stream.answers)
    stream.close()
    assert raised.value.code() is code
    assert 3.0 not in server.model.computed


def test_an_open_stream_asks_the_models_that_its_key_has_by_now(server: Server) -> None:
    key, metadata = server.add("moved")
    stream = OpenStream(server, metadata)
    assert stream.ask(1) == ""

    server.change(key, models=("others-*",))

    wait_until(lambda: "is not for model" in stream.ask(2), 30, "it may ask the model no more")
    server.change(key, models=("fake",))
    wait_until(lambda: not stream.ask(3), 30, "it may again")
    stream.close()


def test_a_watch_of_a_model_ends_once_its_key_is_good_no_more(server: Server) -> None:
    key, metadata = server.add("watcher")
    asked = wrappers_pb2.StringValue(value="fake").SerializeToString()
    watch = server.channel.unary_stream(WATCH)(asked, metadata=metadata, timeout=30)
    next(watch)

    server.change(key, revoked=1.0)

    with pytest.raises(grpc.RpcError) as raised:
        list(watch)
    assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_events_of_a_page_end_once_its_key_is_good_no_more(settings: Settings) -> None:
    store = KeysInRedis(connect(settings.redis_url), settings.key_prefix)
    key, secret = made("ops", roles=("admin",))
    add(store, key)
    app = create_app(settings)
    client, streams, headers = app.test_client(), app.extensions[STREAMS], {"X-API-Key": secret}
    opened = client.get("/ops/stream", headers=headers, buffered=False)
    events = iter(opened.response)
    next(events)
    assert b'"whole"' in next(events)

    store.change(lambda keys: {key.id: key.model_copy(update={"revoked": 1.0})})
    wait_until(lambda: client.get("/ops", headers=headers).status_code == 401, 30, "it is refused")
    streams._tell_of_trouble("it does not answer")

    assert list(events) == []
    opened.close()
    streams.close()
