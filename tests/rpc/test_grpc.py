"""Every method of Triton's gRPC client against a real server process, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import grpc
import pytest
from counting_model import POISON, CountingModel, counting_model
from ferry_processes import free_port
from flask.testing import FlaskClient
from google.protobuf import text_format
from grpc_process import address, grpc_client, refused, row, running_grpc
from registered import register, spec
from tritonclient.grpc import InferenceServerClient, model_config_pb2, service_pb2
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from api.app import create_app
from shared.model_spec import TensorSpec
from shared.settings import Settings
from worker.repository.config.as_json import config_json

CONFIG = """
name: "fake" platform: "pytorch_libtorch" max_batch_size: 32
dynamic_batching { max_queue_delay_microseconds: 18446744073709551615 }
input [ { name: "x" data_type: TYPE_FP32 dims: [-1] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [2] } ]
"""


@pytest.fixture(scope="module")
def settings(redis_url: str) -> Settings:
    """Settings of this file's server."""
    return Settings(redis_url=redis_url, key_prefix="grpc", grpc_port=free_port())


@pytest.fixture(scope="module")
def model(settings: Settings) -> Iterator[CountingModel]:
    """The model `fake`, and `absent`, which nobody serves."""
    absent = spec("absent", TensorSpec(name="x", datatype="FP32", dims=(2,)))
    register(settings, absent, ready=False)
    message = text_format.Parse(CONFIG, model_config_pb2.ModelConfig())
    config = config_json(message, "fake", "torchscript", "model.pt")
    with counting_model(settings, max_batch_size=32, config=config) as model:
        yield model


@pytest.fixture(scope="module")
def log_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the server logs."""
    return tmp_path_factory.mktemp("log") / "log"


@pytest.fixture(scope="module")
def client(
    settings: Settings, model: CountingModel, log_file: Path
) -> Iterator[InferenceServerClient]:
    """Triton's client of a real server."""
    with running_grpc(settings, log_file), grpc_client(settings) as client:
        yield client


@pytest.fixture(scope="module")
def stub(settings: Settings, client: InferenceServerClient) -> Iterator[GRPCInferenceServiceStub]:
    """The bare protocol, for what Triton's client never sends."""
    with grpc.insecure_channel(address(settings)) as channel:
        yield GRPCInferenceServiceStub(channel)


@pytest.fixture(scope="module")
def http(settings: Settings) -> FlaskClient:
    """The same over HTTP."""
    return create_app(settings).test_client()


# Health and metadata.


def test_a_server_that_lacks_a_model_lives_and_is_not_ready(client: InferenceServerClient) -> None:
    assert client.is_server_live() is True
    assert client.is_server_ready() is False


@pytest.mark.parametrize(
    ("name", "version", "ready"),
    [
        ("fake", "", True),
        ("fake", "1", True),
        ("fake", "2", False),
        ("absent", "", False),
        ("unknown", "", False),
    ],
)
def test_a_model_is_ready_when_somebody_serves_it(
    client: InferenceServerClient, name: str, version: str, ready: bool
) -> None:
    assert client.is_model_ready(name, version) is ready


def test_the_server_says_of_itself_what_http_says(
    client: InferenceServerClient, http: FlaskClient
) -> None:
    assert client.get_server_metadata(as_json=True) == http.get("/v2").get_json()


@pytest.mark.parametrize("version", ["", "1"])
def test_a_model_is_described_as_over_http(
    client: InferenceServerClient, http: FlaskClient, version: str
) -> None:
    found = client.get_model_metadata("fake", version)

    wanted = http.get("/v2/models/fake").get_json()
    assert (found.name, list(found.versions), found.platform) == ("fake", ["1"], "fake")
    for kind in ("inputs", "outputs"):
        assert wanted[kind] == [
            {"name": each.name, "datatype": each.datatype, "shape": list(each.shape)}
            for each in getattr(found, kind)
        ]


def test_a_configuration_is_answered_as_the_message_it_was(client: InferenceServerClient) -> None:
    found = client.get_model_config("fake").config

    assert (found.name, found.max_batch_size) == ("fake", 32)
    assert found.dynamic_batching.max_queue_delay_microseconds == 2**64 - 1
    assert found.input[0].data_type == model_config_pb2.TYPE_FP32
    assert list(found.input[0].dims) == [-1]


def test_the_repository_lists_what_http_lists(
    client: InferenceServerClient, http: FlaskClient, stub: GRPCInferenceServiceStub
) -> None:
    found = client.get_model_repository_index()
    ready = stub.RepositoryIndex(service_pb2.RepositoryIndexRequest(ready=True))

    assert [
        {"name": each.name, "version": each.version, "state": each.state, "reason": each.reason}
        for each in found.models
    ] == http.post("/v2/repository/index").get_json()
    assert [each.name for each in ready.models] == ["fake"]


def test_log_settings_are_those_of_all_processes(
    client: InferenceServerClient, http: FlaskClient
) -> None:
    changed = client.update_log_settings({"log_info": False})
    try:
        assert changed.settings["log_info"].bool_param is False
        assert http.get("/v2/logging").get_json()["log_info"] is False
        found = client.get_log_settings(as_json=True)["settings"]
        assert found["log_format"] == {"string_param": "default"}
        assert found["log_verbose_level"] == {"uint32_param": 0}
    finally:
        client.update_log_settings({"log_info": True})
    assert refused(client.update_log_settings, {"log_colour": True}) == (
        "INVALID_ARGUMENT",
        "'log_colour' is not a log setting",
    )


# What is refused.


@pytest.mark.parametrize("ask", ["load_model", "unload_model"])
def test_models_are_not_loaded_by_request(client: InferenceServerClient, ask: str) -> None:
    code, message = refused(getattr(client, ask), "fake")

    assert code == "INVALID_ARGUMENT"
    assert message.startswith("explicit model load / unload is not allowed")


@pytest.mark.parametrize(
    ("ask", "arguments"),
    [
        ("get_system_shared_memory_status", ()),
        ("register_system_shared_memory", ("a", "/a", 8)),
        ("unregister_system_shared_memory", ()),
        ("get_cuda_shared_memory_status", ()),
        ("register_cuda_shared_memory", ("a", b"aGFuZGxl", 0, 8)),
        ("unregister_cuda_shared_memory", ()),
    ],
)
def test_what_is_not_offered_is_refused_with_a_reason(
    client: InferenceServerClient, ask: str, arguments: tuple[Any, ...]
) -> None:
    code, message = refused(getattr(client, ask), *arguments)

    assert code == "UNIMPLEMENTED"
    assert "is not supported: " in message


def test_trace_settings_are_kept_as_over_http(
    client: InferenceServerClient, http: FlaskClient
) -> None:
    client.update_trace_settings("fake", {"trace_level": ["TIMESTAMPS", "TENSORS"]})
    found = client.update_trace_settings("fake", {"trace_rate": "3", "trace_count": "4"})
    assert http.get("/v2/models/fake/trace/setting").get_json() == {
        name: list(setting.value) if name == "trace_level" else setting.value[0]
        for name, setting in found.settings.items()
    }

    client.update_trace_settings("fake", {"trace_level": None, "trace_rate": None})

    found = client.get_trace_settings("fake", as_json=True)["settings"]
    assert found["trace_level"] == {"value": ["OFF"]}
    assert (found["trace_rate"], found["trace_count"]) == ({"value": ["1000"]}, {"value": ["4"]})
    assert client.get_trace_settings().settings["trace_count"].value == ["-1"]


def test_wrong_trace_settings_are_refused_as_over_http(client: InferenceServerClient) -> None:
    update = client.update_trace_settings

    assert refused(update, None, {"trace_level": ["OFF", "TENSORS"]})[0] == "INVALID_ARGUMENT"
    assert refused(update, None, {"trace_rate": "often"})[0] == "INVALID_ARGUMENT"
    assert refused(update, None, {"trace_file": "x"})[0] == "UNIMPLEMENTED"
    assert refused(client.get_trace_settings, "nobody") == (
        "NOT_FOUND",
        "Request for unknown model : nobody",
    )


def test_a_tensor_in_shared_memory_is_refused(client: InferenceServerClient) -> None:
    given = row(1, 2)
    given.set_shared_memory("region", 8)

    assert refused(client.infer, "fake", [given])[0] == "UNIMPLEMENTED"


@pytest.mark.parametrize("ask", ["get_model_metadata", "get_model_config"])
@pytest.mark.parametrize(("name", "version"), [("unknown", ""), ("fake", "2"), ("fake", "one")])
def test_an_unknown_model_is_not_found(
    client: InferenceServerClient, ask: str, name: str, version: str
) -> None:
    code, message = refused(getattr(client, ask), name, version)

    assert code == "NOT_FOUND"
    assert message.startswith(f"Request for unknown model: '{name}'")


def test_each_refusal_has_its_code_and_the_words_of_http(
    client: InferenceServerClient, http: FlaskClient
) -> None:
    wrong = {"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}
    bodies = {"unknown": wrong, "absent": wrong, "fake": wrong}
    told = {
        name: http.post(f"/v2/models/{name}/infer", json={"inputs": [body]}).get_json()["error"]
        for name, body in bodies.items()
    }

    found = {name: refused(client.infer, name, [row(1, 2, 3)]) for name in bodies}

    codes = {"unknown": "NOT_FOUND", "absent": "UNAVAILABLE", "fake": "INVALID_ARGUMENT"}
    assert found == {name: (codes[name], told[name]) for name in bodies}


def test_an_error_of_the_model_is_internal_and_alone(client: InferenceServerClient) -> None:
    with ThreadPoolExecutor(8) as pool:
        good = [pool.submit(client.infer, "fake", [row(number, 0)]) for number in range(1, 8)]
        code, message = refused(client.infer, "fake", [row(POISON, 0)])

    assert code == "INTERNAL"
    assert f"cannot stand {POISON}" in message
    assert [each.result().as_numpy("y")[0, 0] for each in good] == [2.0 * n for n in range(1, 8)]


def test_an_unavailable_model_says_when_to_come_back(stub: GRPCInferenceServiceStub) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        stub.ModelInfer(service_pb2.ModelInferRequest(model_name="absent"))

    assert raised.value.code() == grpc.StatusCode.UNAVAILABLE
    assert ("retry-after", "1") in raised.value.trailing_metadata()


# Inference.


def test_an_answer_names_model_version_id_and_what_it_cost(client: InferenceServerClient) -> None:
    result = client.infer("fake", [row(1, 2)], "1", request_id="schön-✓")

    response = result.get_response()
    assert result.as_numpy("y").tolist() == [[2.0, 4.0]]
    assert (response.model_name, response.model_version) == ("fake", "1")
    assert response.id == "schön-✓"
    assert response.parameters["batch_size"].int64_param == 1
    assert response.parameters["instance"].string_param == "counting"
    assert response.parameters["compute_seconds"].double_param > 0


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_a_compressed_request_is_opened(client: InferenceServerClient, algorithm: str) -> None:
    result = client.infer("fake", [row(1, 2)], compression_algorithm=algorithm)

    assert result.as_numpy("y").tolist() == [[2.0, 4.0]]


def test_async_infer_calls_back_with_an_answer_or_an_error(client: InferenceServerClient) -> None:
    found: SimpleQueue[Any] = SimpleQueue()

    def callback(result: Any, error: Any) -> None:
        found.put(error or result)

    client.async_infer("fake", [row(3, 4)], callback)
    assert found.get(timeout=10).as_numpy("y").tolist() == [[6.0, 8.0]]

    client.async_infer("unknown", [row(3, 4)], callback)
    assert found.get(timeout=10).status() == "StatusCode.NOT_FOUND"


def test_64_clients_at_once_get_each_their_own_answer(
    client: InferenceServerClient, model: CountingModel
) -> None:
    def ask(number: int) -> float:
        return float(client.infer("fake", [row(number, 0)]).as_numpy("y")[0, 0])

    passes = model.passes
    with ThreadPoolExecutor(64) as pool:
        found = list(pool.map(ask, range(640)))

    assert found == [2.0 * number for number in range(640)]
    assert model.passes - passes < 640, "they shared batches"


def test_no_mistake_of_a_client_is_logged_as_an_error_of_ours(
    client: InferenceServerClient, log_file: Path
) -> None:
    refused(client.infer, "unknown", [row(1, 2)])

    text = log_file.read_text()
    assert "gRPC listens on" in text
    assert "ERROR" not in text and "Traceback" not in text


def test_every_method_of_the_service_is_answered_or_refused_on_purpose(
    stub: GRPCInferenceServiceStub,
) -> None:
    service = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    unary = [method for method in service.methods if method.name != "ModelStreamInfer"]

    for method in unary:
        call: Callable[..., Any] = getattr(stub, method.name)
        try:
            call(getattr(service_pb2, method.input_type.name)())
        except grpc.RpcError as error:
            assert error.details() != "Method not implemented!", method.name
            assert "internal error" not in error.details(), method.name
    assert len(unary) == 19
