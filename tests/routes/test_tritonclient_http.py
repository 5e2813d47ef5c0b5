"""tritonclient.http of the installed version against a real server: every method it has.

NVIDIA's client is what most v2 programs are written with; nothing in it was changed for Ferry.
"""

from __future__ import annotations

import asyncio
import gc
import inspect
import json
from collections.abc import Callable, Coroutine, Iterator
from http.client import HTTPConnection
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from echo_models import Identity, add_arithmetic, add_echo, config, tensors
from ferry_processes import free_port, running_gunicorn, running_worker
from ml_dtypes import bfloat16
from scripted_models import Slow, add_model
from stand_ins import torchscript
from tritonclient.http.auth import BasicAuth
from tritonclient.utils import InferenceServerException

from shared.datatypes import DATATYPES, NUMPY_TYPES, Array
from shared.settings import Settings

# Its asyncio client leaves answers whose body it does not want to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

VALUES: dict[str, Array] = {
    "BOOL": np.array([[True, False], [False, True]]),
    "FP16": np.array([[-1.5, 0.1], [65504, 6e-8]], np.float16),
    "BF16": np.array([[-1.5, 0.1], [3e38, 1e-38]], bfloat16),
    "FP32": np.array([[-1.5, 0.1], [3.4e38, 1e-45]], np.float32),
    "FP64": np.array([[-1.5, 0.1], [1.7e308, 5e-324]]),
    "BYTES": np.array([[b"", b"plain"], ["schön 好".encode(), b"a\nb\0c"]], object),
} | {
    name: np.array([[np.iinfo(kind).min, 0], [1, np.iinfo(kind).max]], kind)
    for name, kind in NUMPY_TYPES.items()
    if kind.kind in "iu"
}
NO_JSON = {"FP16", "BF16"}
SCORES = np.array([[0.125, 2.5, -1.0], [3.0, 3.0, 0.0]], np.float32)


def write_models(repository: Any) -> None:
    for datatype in VALUES:
        add_echo(repository, datatype)
    add_echo(repository, "FP32", name="wide", dims="[-1]")
    add_arithmetic(repository)
    add_model(repository, Slow())
    both = [tensors(kind, ("x", "FP32", "[3]")) for kind in ("input", "output")]
    labelled = config(8, *both).rstrip().removesuffix("} ]") + ' label_filename: "labels.txt" } ]\n'
    levels = "dynamic_batching { priority_levels: 2 default_priority_level: 2 }\n"
    torchscript(repository, "scores", Identity(), labelled + levels)
    (repository / "scores" / "labels.txt").write_text("cat\ndog\n")


@pytest.fixture(scope="module")
def url(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    models = tmp_path_factory.mktemp("models")
    write_models(models)
    settings = Settings(
        redis_url=redis_url,
        key_prefix="tritonclient",
        models=str(models),
        port=free_port(),
        api_processes=1,
    )
    with running_worker(settings), running_gunicorn(settings):
        yield f"127.0.0.1:{settings.port}"
        gc.collect()


@pytest.fixture
def client(url: str) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(url) as client:
        yield client


def given(name: str, array: Array, datatype: str = "FP32", *, binary: bool = True) -> Any:
    tensor = triton.InferInput(name, list(array.shape), datatype)
    return tensor.set_data_from_numpy(array, binary_data=binary)


def wanted(name: str, **how: Any) -> Any:
    return triton.InferRequestedOutput(name, **how)


def echo(datatype: str) -> tuple[str, str]:
    """Return the model's name and its output's."""
    return f"echo_{datatype}", "y" if datatype == "BYTES" else "x"


def refused(call: Callable[[], Any], status: int = 400) -> str:
    with pytest.raises(InferenceServerException) as caught:
        call()
    assert caught.value.status() == str(status), caught.value
    message: str = caught.value.message()
    return message


# Health and metadata.


def test_health_is_told(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live() is True
    assert client.is_server_ready() is True
    assert client.is_model_ready("scores") is True
    assert client.is_model_ready("scores", "1") is True
    assert client.is_model_ready("nothing") is False
    assert client.is_model_ready("scores", "9") is False


def test_metadata_is_told(client: triton.InferenceServerClient) -> None:
    server = client.get_server_metadata(headers={"x-more": "1"}, query_params={"a": ["b", 1]})
    model = client.get_model_metadata("scores", "1")

    assert server["name"] == "ferry"
    assert {"binary_tensor_data", "classification", "schedule_policy"} <= set(server["extensions"])
    assert model["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}]
    assert "unknown model" in refused(lambda: client.get_model_metadata("nothing"), 404)


# Inference.


def test_the_datatypes_asked_for_are_all_there_are() -> None:
    assert set(VALUES) == DATATYPES


@pytest.mark.parametrize("outputs_listed", [True, False])
@pytest.mark.parametrize("datatype", sorted(DATATYPES))
def test_every_datatype_comes_back_in_binary(
    client: triton.InferenceServerClient, datatype: str, outputs_listed: bool
) -> None:
    model, output = echo(datatype)
    array = VALUES[datatype]
    outputs = [wanted(output)] if outputs_listed else None

    result = client.infer(model, [given("x", array, datatype)], outputs=outputs, request_id="7")

    found = result.as_numpy(output)
    assert found.dtype == array.dtype
    assert found.tolist() == array.tolist()
    assert result.get_response()["id"] == "7"
    assert result.get_output(output)["parameters"]["binary_data_size"] > 0


@pytest.mark.parametrize("datatype", sorted(DATATYPES - NO_JSON))
def test_every_datatype_comes_back_in_json(
    client: triton.InferenceServerClient, datatype: str
) -> None:
    model, output = echo(datatype)
    array = VALUES[datatype]
    outputs = [wanted(output, binary_data=False)]

    result = client.infer(model, [given("x", array, datatype, binary=False)], outputs=outputs)

    found = result.as_numpy(output)
    texts = [[item.decode() for item in row] for row in array] if datatype == "BYTES" else array
    assert np.array_equal(found, texts)
    assert "data" in result.get_output(output)


@pytest.mark.parametrize("datatype", sorted(NO_JSON))
def test_half_precision_as_json_is_refused(
    client: triton.InferenceServerClient, datatype: str
) -> None:
    inputs = [given("x", VALUES[datatype], datatype)]
    outputs = [wanted("x", binary_data=False)]

    message = refused(lambda: client.infer(f"echo_{datatype}", inputs, outputs=outputs))

    assert "ask for binary data" in message


@pytest.mark.parametrize("binary_in", [(True, False), (False, True), (True, True), (False, False)])
@pytest.mark.parametrize("binary_out", [(True, False), (False, True), (True, True), (False, False)])
def test_binary_and_json_are_mixed_at_will(
    client: triton.InferenceServerClient,
    binary_in: tuple[bool, bool],
    binary_out: tuple[bool, bool],
) -> None:
    a = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
    inputs = [given("b", 10 * a, binary=binary_in[0]), given("a", a, binary=binary_in[1])]
    outputs = [
        wanted("difference__1", binary_data=binary_out[0]),
        wanted("sum__0", binary_data=binary_out[1]),
    ]

    result = client.infer("arithmetic", inputs, outputs=outputs)

    assert np.array_equal(result.as_numpy("sum__0"), 11 * a)
    assert np.array_equal(result.as_numpy("difference__1"), -9 * a)
    names = [output["name"] for output in result.get_response()["outputs"]]
    assert names == ["difference__1", "sum__0"]
    for name, binary in zip(names, binary_out, strict=True):
        assert ("data" in result.get_output(name)) is not binary


def test_one_of_two_outputs_is_answered_alone(client: triton.InferenceServerClient) -> None:
    a = np.ones((1, 2, 3), np.float32)

    result = client.infer("arithmetic", [given("a", a), given("b", a)], outputs=[wanted("sum__0")])

    assert np.array_equal(result.as_numpy("sum__0"), 2 * a)
    assert result.as_numpy("difference__1") is None


def test_a_version_is_asked_for(client: triton.InferenceServerClient) -> None:
    inputs = [given("x", SCORES)]

    result = client.infer("scores", inputs, model_version="1")

    assert result.get_response()["model_version"] == "1"
    assert "9" in refused(lambda: client.infer("scores", inputs, model_version="9"), 404)


def test_what_is_wrong_is_told(client: triton.InferenceServerClient) -> None:
    nine = np.zeros((9, 3), np.float32)

    assert "unknown model" in refused(lambda: client.infer("nothing", [given("x", SCORES)]), 404)
    assert "batch-size must be <= 8" in refused(lambda: client.infer("scores", [given("x", nine)]))
    assert "missing input" in refused(lambda: client.infer("scores", []))


# Classification.


def classes(result: Any, name: str = "x") -> Any:
    return [[item.decode() for item in row] for row in result.as_numpy(name)]


@pytest.mark.parametrize("binary", [True, False])
def test_the_best_classes_of_each_row_come_with_their_labels(
    client: triton.InferenceServerClient, binary: bool
) -> None:
    outputs = [wanted("x", class_count=2, binary_data=binary)]

    result = client.infer("scores", [given("x", SCORES)], outputs=outputs)

    assert result.get_output("x")["datatype"] == "BYTES"
    found = result.as_numpy("x").tolist()
    if binary:
        found = classes(result)
    assert found == [["2.500000:1:dog", "0.125000:0:cat"], ["3.000000:0:cat", "3.000000:1:dog"]]


def test_there_are_no_more_classes_than_values(client: triton.InferenceServerClient) -> None:
    outputs = [wanted("x", class_count=100)]

    result = client.infer("scores", [given("x", SCORES[:1])], outputs=outputs)

    # The third class has no label: the file names two.
    assert classes(result) == [["2.500000:1:dog", "0.125000:0:cat", "-1.000000:2"]]


def test_whole_numbers_are_classified_as_they_are(client: triton.InferenceServerClient) -> None:
    rows = np.array([[7, 2**63 - 1]])

    result = client.infer(
        "echo_INT64", [given("x", rows, "INT64")], outputs=[wanted("x", class_count=1)]
    )

    assert classes(result) == [["9223372036854775807:1"]]


@pytest.mark.parametrize("datatype", sorted(NO_JSON))
def test_half_precision_is_classified_also_in_json(
    client: triton.InferenceServerClient, datatype: str
) -> None:
    rows = np.array([[0.5, 1.5]], NUMPY_TYPES[datatype])
    outputs = [wanted("x", class_count=1, binary_data=False)]

    result = client.infer(f"echo_{datatype}", [given("x", rows, datatype)], outputs=outputs)

    assert result.get_output("x")["data"] == ["1.500000:1"]


# Request options.


def test_priorities_are_taken_and_those_that_do_not_exist_refused(
    client: triton.InferenceServerClient,
) -> None:
    for priority in (0, 1, 2):
        client.infer("scores", [given("x", SCORES)], priority=priority)

    assert "priority" in refused(lambda: client.infer("scores", [given("x", SCORES)], priority=3))


def test_a_request_that_expires_is_told_in_tritons_words(
    client: triton.InferenceServerClient,
) -> None:
    long = given("x", np.full((1, 2), 20_000, np.float32))

    message = refused(lambda: client.infer("slow", [long], timeout=100_000), 503)

    assert message == "Request timeout expired"


def test_a_clients_own_timeout_leaves_the_server_serving(url: str) -> None:
    long = given("x", np.full((1, 2), 20_000, np.float32))
    impatient = triton.InferenceServerClient(url, network_timeout=0.1)
    with impatient, pytest.raises(TimeoutError):
        impatient.infer("slow", [long])

    with triton.InferenceServerClient(url) as client:
        result = client.infer("scores", [given("x", SCORES)])
    assert np.array_equal(result.as_numpy("x"), SCORES)


def test_parameters_of_ones_own_are_taken(client: triton.InferenceServerClient) -> None:
    parameters = {"temperature": 0.5, "name": "x", "deep": True}

    client.infer("scores", [given("x", SCORES)], parameters=parameters)


# Many at a time, and bodies without a client.


def test_64_requests_at_a_time_get_each_its_own_answer(url: str) -> None:
    arrays = [np.full((1, 3), index, np.float32) for index in range(64)]
    with triton.InferenceServerClient(url, concurrency=64) as client:
        asked = [
            client.async_infer("scores", [given("x", array, binary=bool(index % 2))])
            for index, array in enumerate(arrays)
        ]
        found = [each.get_result(timeout=30).as_numpy("x") for each in asked]

    assert np.array_equal(found, arrays)


def test_bodies_are_made_and_read_without_the_client(url: str) -> None:
    make = triton.InferenceServerClient.generate_request_body
    body, length = make([given("x", SCORES)], outputs=[wanted("x")], request_id="7")
    connection = HTTPConnection(url)
    headers = {"Inference-Header-Content-Length": str(length)}
    connection.request("POST", "/v2/models/scores/infer", body, headers)
    response = connection.getresponse()

    result = triton.InferenceServerClient.parse_response_body(
        response.read(),
        header_length=int(response.headers["Inference-Header-Content-Length"]),
        content_encoding=response.headers.get("Content-Encoding"),
    )
    connection.close()

    assert np.array_equal(result.as_numpy("x"), SCORES)
    assert result.get_response()["id"] == "7"


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
@pytest.mark.parametrize("binary", [True, False])
def test_bodies_are_compressed_both_ways(
    client: triton.InferenceServerClient, algorithm: str, binary: bool
) -> None:
    rows = np.zeros((8, 1000), np.float32)

    result = client.infer(
        "wide",
        [given("x", rows, binary=binary)],
        outputs=[wanted("x", binary_data=binary)],
        request_compression_algorithm=algorithm,
        response_compression_algorithm=algorithm,
    )

    assert np.array_equal(result.as_numpy("x"), rows)


def test_a_compressed_answers_header_counts_the_json_before_it_was_compressed(url: str) -> None:
    rows = np.zeros((8, 1000), np.float32)
    body, length = triton.InferenceServerClient.generate_request_body([given("x", rows)])
    connection = HTTPConnection(url)
    headers = {"Inference-Header-Content-Length": str(length), "Accept-Encoding": "gzip"}
    connection.request("POST", "/v2/models/wide/infer", body, headers)
    response = connection.getresponse()

    content = response.read()
    result = triton.InferenceServerClient.parse_response_body(
        content,
        header_length=int(response.headers["Inference-Header-Content-Length"]),
        content_encoding=response.headers["Content-Encoding"],
    )
    connection.close()

    assert len(content) < 1000
    assert np.array_equal(result.as_numpy("x"), rows)


# Every method, also through asyncio.


def unregister_plugin(client: Any) -> None:
    client.register_plugin(BasicAuth("name", "word"))
    client.unregister_plugin()


CALLS: dict[str, Callable[[Any], Any]] = {
    "close": lambda client: client.close(),
    "generate_request_body": lambda client: client.generate_request_body([given("x", SCORES)]),
    "get_cuda_shared_memory_status": lambda client: client.get_cuda_shared_memory_status(),
    "get_inference_statistics": lambda client: client.get_inference_statistics("scores"),
    "get_log_settings": lambda client: client.get_log_settings(),
    "get_model_config": lambda client: client.get_model_config("scores"),
    "get_model_metadata": lambda client: client.get_model_metadata("scores"),
    "get_model_repository_index": lambda client: client.get_model_repository_index(),
    "get_server_metadata": lambda client: client.get_server_metadata(),
    "get_system_shared_memory_status": lambda client: client.get_system_shared_memory_status(),
    "get_trace_settings": lambda client: client.get_trace_settings("scores"),
    "infer": lambda client: client.infer("scores", [given("x", SCORES)]),
    "is_model_ready": lambda client: client.is_model_ready("scores"),
    "is_server_live": lambda client: client.is_server_live(),
    "is_server_ready": lambda client: client.is_server_ready(),
    "load_model": lambda client: client.load_model("scores"),
    "parse_response_body": lambda client: client.parse_response_body(b'{"outputs": []}'),
    "plugin": lambda client: client.plugin(),
    "register_cuda_shared_memory": lambda client: client.register_cuda_shared_memory(
        "region", b"handle", 0, 8
    ),
    "register_plugin": lambda client: client.register_plugin(BasicAuth("name", "word")),
    "register_system_shared_memory": lambda client: client.register_system_shared_memory(
        "region", "/key", 8
    ),
    "unload_model": lambda client: client.unload_model("scores"),
    "unregister_cuda_shared_memory": lambda client: client.unregister_cuda_shared_memory(),
    "unregister_plugin": unregister_plugin,
    "unregister_system_shared_memory": lambda client: client.unregister_system_shared_memory(),
    "update_log_settings": lambda client: client.update_log_settings({"log_info": True}),
    "update_trace_settings": lambda client: client.update_trace_settings(
        settings={"trace_level": ["TIMESTAMPS"]}
    ),
}
"""One call of every method; of asyncio's client it returns what is to be awaited."""
NOT_OFFERED = {
    name: ("501", word)
    for name in CALLS
    for word in ("shared memory",)
    if word.replace(" ", "_") in name
}
"""By method, the status and a word of the refusal."""
REFUSED = NOT_OFFERED | {
    # The models are loaded by whoever starts the worker, unless it was started otherwise.
    "load_model": ("400", "load"),
    "unload_model": ("400", "load"),
}


def public(kind: type) -> set[str]:
    return {name for name in dir(kind) if not name.startswith("_")}


def check_refused(name: str, error: InferenceServerException) -> None:
    status, word = REFUSED[name]
    assert error.status() == status
    assert word in error.message()


def test_no_method_of_either_client_is_left_out() -> None:
    assert public(triton.InferenceServerClient) == {*CALLS, "async_infer"}
    assert public(triton_aio.InferenceServerClient) == set(CALLS)


@pytest.mark.parametrize("name", CALLS)
def test_every_method_is_answered(client: triton.InferenceServerClient, name: str) -> None:
    try:
        CALLS[name](client)
    except InferenceServerException as error:
        check_refused(name, error)
    else:
        assert name not in REFUSED


@pytest.mark.parametrize("name", CALLS)
def test_every_method_is_answered_through_asyncio(url: str, name: str) -> None:
    async def call() -> None:
        async with triton_aio.InferenceServerClient(url) as client:
            found = CALLS[name](client)
            if inspect.isawaitable(found):
                await found

    try:
        asyncio.run(call())
    except InferenceServerException as error:
        check_refused(name, error)
    else:
        assert name not in REFUSED


def asked(url: str, ask: Callable[[Any], Coroutine[Any, Any, Any]]) -> Any:
    """Return what `ask` returns, given asyncio's client."""

    async def call() -> Any:
        async with triton_aio.InferenceServerClient(url) as client:
            return await ask(client)

    return asyncio.run(call())


@pytest.mark.parametrize("datatype", sorted(DATATYPES))
def test_every_datatype_comes_back_in_binary_through_asyncio(url: str, datatype: str) -> None:
    model, output = echo(datatype)
    array = VALUES[datatype]

    result = asked(url, lambda client: client.infer(model, [given("x", array, datatype)]))

    assert result.as_numpy(output).dtype == array.dtype
    assert result.as_numpy(output).tolist() == array.tolist()


def test_many_requests_at_a_time_through_asyncio_get_each_its_own_answer(url: str) -> None:
    arrays = [np.full((1, 3), index, np.float32) for index in range(64)]

    async def ask(client: Any) -> list[Any]:
        return await asyncio.gather(
            *(client.infer("scores", [given("x", array)]) for array in arrays)
        )

    assert np.array_equal([result.as_numpy("x") for result in asked(url, ask)], arrays)


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_json_classes_and_compression_go_through_asyncio(url: str, algorithm: str) -> None:
    inputs = [given("x", SCORES, binary=False)]
    outputs = [wanted("x", class_count=1, binary_data=False)]

    result = asked(
        url,
        lambda client: client.infer(
            "scores",
            inputs,
            outputs=outputs,
            request_id="7",
            priority=1,
            timeout=10_000_000,
            request_compression_algorithm=algorithm,
            response_compression_algorithm=algorithm,
        ),
    )

    assert result.get_response()["id"] == "7"
    assert result.get_output("x")["data"] == ["2.500000:1:dog", "3.000000:0:cat"]


def test_refusals_reach_asyncio_with_their_status(url: str) -> None:
    with pytest.raises(InferenceServerException) as caught:
        asked(url, lambda client: client.infer("nothing", [given("x", SCORES)]))

    assert caught.value.status() == "404"
    assert "unknown model" in caught.value.message()


# What is long is packed only where the clients open it.


def test_a_long_refusal_is_read_by_who_asked_for_compression(
    client: triton.InferenceServerClient,
) -> None:
    name = 2000 * "x"
    ask = {"response_compression_algorithm": "gzip"}

    message = refused(lambda: client.infer("scores", [given(name, SCORES)], **ask))

    assert "unknown input 'xxx" in message


def test_a_long_description_is_read_through_asyncio(url: str) -> None:
    found = asked(url, lambda client: client.get_model_repository_index())

    assert len(json.dumps(found)) > 1024
    assert {"arithmetic", "scores", "wide"} < {model["name"] for model in found}


# Shared memory is named in tensors too.


def test_tensors_in_shared_memory_are_refused(client: triton.InferenceServerClient) -> None:
    shared = triton.InferInput("x", [1, 3], "FP32")
    shared.set_shared_memory("region", 12)
    output = wanted("x")
    output.set_shared_memory("region", 12)

    for ask in (
        lambda: client.infer("scores", [shared]),
        lambda: client.infer("scores", [given("x", SCORES)], outputs=[output]),
    ):
        assert "shared memory is not supported" in refused(ask, 501)
