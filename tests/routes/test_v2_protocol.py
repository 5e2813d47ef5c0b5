"""The Open Inference Protocol over JSON, answered by a real worker with models made here."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from answers import answer, refusal
from echo_models import VALUES, Identity, add_arithmetic, add_echo, config, tensors
from ferry_processes import running_worker
from flask import Flask
from flask.testing import FlaskClient
from stand_ins import torchscript

from api.app import create_app
from api.payloads.json_arrays import BINARY_ONLY
from shared.datatypes import NUMPY_TYPES
from shared.settings import Settings


class Picky(torch.nn.Module):
    """Doubles, and raises when any row of the batch holds a negative number."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if bool((x < 0).any()):
            raise ValueError("no negative numbers please")
        return 2 * x


def write_models(repository: Any) -> None:
    for datatype in VALUES:
        add_echo(repository, datatype)
    add_arithmetic(repository)
    whole = [tensors(kind, ("x", "FP32", "[-1, 2]")) for kind in ("input", "output")]
    torchscript(repository, "unbatched", Identity(), config(0, *whole))
    numbers = [tensors(kind, ("x", "FP32", "[2]")) for kind in ("input", "output")]
    delay = "dynamic_batching { max_queue_delay_microseconds: 1000000 }\n"
    torchscript(repository, "picky", Picky(), config(32, *numbers) + delay)


@pytest.fixture(scope="module")
def app(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flask]:
    models = tmp_path_factory.mktemp("models")
    write_models(models)
    settings = Settings(redis_url=redis_url, key_prefix="v2", models=str(models))
    with running_worker(settings):
        yield create_app(settings)


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


def infer(client: FlaskClient, model: str, *inputs: dict[str, Any], **rest: Any) -> Any:
    return answer(client.post(f"/v2/models/{model}/infer", json={"inputs": list(inputs), **rest}))


def tensor(data: Any, shape: list[int], name: str = "x", datatype: str = "FP32") -> dict[str, Any]:
    return {"name": name, "shape": shape, "datatype": datatype, "data": data}


def nested(flat: list[Any], shape: list[int]) -> Any:
    return np.array(flat, dtype=object).reshape(shape).tolist()


# Tensors.


@pytest.mark.parametrize("datatype", VALUES)
@pytest.mark.parametrize("form", ["flat", "nested"])
def test_every_datatype_comes_back_as_it_went(
    client: FlaskClient, datatype: str, form: str
) -> None:
    values = VALUES[datatype]
    data = values if form == "flat" else nested(values, [2, 2])

    body = infer(client, f"echo_{datatype}", tensor(data, [2, 2], datatype=datatype))

    (output,) = body["outputs"]
    assert (output["datatype"], output["shape"]) == (datatype, [2, 2])
    # A float may be written shorter than it was sent: what counts is the number it reads back as.
    wanted = np.array(values, np.float32).tolist() if datatype == "FP32" else values
    found = output["data"]
    assert (np.array(found, np.float32).tolist() if datatype == "FP32" else found) == wanted
    assert [type(item) for item in output["data"]] == [type(item) for item in values]


def test_the_datatypes_tested_are_all_that_json_carries() -> None:
    assert set(VALUES) == set(NUMPY_TYPES) - BINARY_ONLY


def test_whole_numbers_are_taken_where_floats_belong(client: FlaskClient) -> None:
    body = infer(client, "echo_FP64", tensor([1, 2.5, -3, 2**53], [2, 2], datatype="FP64"))

    assert body["outputs"][0]["data"] == [1.0, 2.5, -3.0, 2.0**53]


def test_a_model_with_several_inputs_gets_each_by_its_name(client: FlaskClient) -> None:
    a, b = list(range(12)), [10 * number for number in range(12)]

    body = infer(
        client,
        "arithmetic",
        tensor(b, [2, 2, 3], "b"),
        tensor(nested(a, [2, 2, 3]), [2, 2, 3], "a"),
    )

    found = {output["name"]: output["data"] for output in body["outputs"]}
    assert found["sum__0"] == [11 * number for number in range(12)]
    assert found["difference__1"] == [-9 * number for number in range(12)]
    assert [output["name"] for output in body["outputs"]] == ["sum__0", "difference__1"]


def test_only_the_requested_outputs_are_answered_in_their_order(client: FlaskClient) -> None:
    inputs = tensor([1] * 6, [1, 2, 3], "a"), tensor([2] * 6, [1, 2, 3], "b")

    one = infer(client, "arithmetic", *inputs, outputs=[{"name": "difference__1"}])
    both = infer(
        client, "arithmetic", *inputs, outputs=[{"name": "difference__1"}, {"name": "sum__0"}]
    )

    assert [output["name"] for output in one["outputs"]] == ["difference__1"]
    assert one["outputs"][0]["data"] == [-1] * 6
    assert [output["name"] for output in both["outputs"]] == ["difference__1", "sum__0"]


def test_an_empty_list_of_outputs_means_all(client: FlaskClient) -> None:
    inputs = tensor([1] * 6, [1, 2, 3], "a"), tensor([2] * 6, [1, 2, 3], "b")

    assert len(infer(client, "arithmetic", *inputs, outputs=[])["outputs"]) == 2


@pytest.mark.parametrize("rows", [1, 3, 8])
def test_a_client_batch_up_to_the_maximum_is_answered_row_by_row(
    client: FlaskClient, rows: int
) -> None:
    data = list(range(2 * rows))

    body = infer(client, "echo_INT32", tensor(data, [rows, 2], datatype="INT32"))

    assert body["outputs"][0]["data"] == data
    assert body["outputs"][0]["shape"] == [rows, 2]
    assert body["timings"]["batch_size"] >= rows


@pytest.mark.parametrize("rows", [1, 5])
def test_a_model_without_batches_takes_exactly_its_dims(client: FlaskClient, rows: int) -> None:
    data = list(range(2 * rows))

    body = infer(client, "unbatched", tensor(data, [rows, 2]))

    assert body["outputs"][0]["shape"] == [rows, 2]
    assert body["outputs"][0]["data"] == data
    assert answer(client.get("/v2/models/unbatched"))["inputs"][0]["shape"] == [-1, 2]


def test_a_model_without_batches_refuses_a_batch_dimension(client: FlaskClient) -> None:
    body = {"inputs": [tensor([1, 2], [1, 1, 2])]}

    assert "3 dimensions" in refusal(client.post("/v2/models/unbatched/infer", json=body))


# The envelope.


@pytest.mark.parametrize("request_id", ["", "42", "schön-✓"])
def test_the_id_is_echoed(client: FlaskClient, request_id: str) -> None:
    body = infer(client, "echo_FP32", tensor([1, 2], [1, 2]), id=request_id)

    assert body["id"] == request_id


def test_without_an_id_none_is_answered(client: FlaskClient) -> None:
    assert "id" not in infer(client, "echo_FP32", tensor([1, 2], [1, 2]))


def test_an_answer_names_model_and_version_and_what_it_cost(client: FlaskClient) -> None:
    response = client.post(
        "/v2/models/echo_FP32/versions/1/infer", json={"inputs": [tensor([1, 2], [1, 2])]}
    )

    body = answer(response)
    assert (body["model_name"], body["model_version"]) == ("echo_FP32", "1")
    assert set(body["timings"]) == {
        "queue_seconds", "batch_wait_seconds", "compute_seconds", "batch_size", "attempts",
        "instance",
    }  # fmt: skip
    assert "compute;dur=" in response.headers["Server-Timing"]


def test_parameters_and_unknown_keys_are_taken(client: FlaskClient) -> None:
    item = tensor([1, 2], [1, 2]) | {"parameters": {"a": 1}, "unknown": {"b": [1]}}

    body = infer(client, "echo_FP32", item, parameters={"x": "y", "z": True, "f": 0.5}, more=[1])

    assert body["outputs"][0]["data"] == [1, 2]


def test_what_json_cannot_say_is_answered_as_null(client: FlaskClient) -> None:
    largest = 3.4028234663852886e38
    inputs = tensor([largest] * 6, [1, 2, 3], "a"), tensor([largest] * 6, [1, 2, 3], "b")

    body = infer(client, "arithmetic", *inputs)

    assert body["outputs"][0]["data"] == [None] * 6
    assert body["outputs"][1]["data"] == [0] * 6


# Metadata and health.


@pytest.mark.parametrize("path", ["/v2", "/v2/", "/"])
def test_the_server_says_who_it_is(client: FlaskClient, path: str) -> None:
    body = answer(client.get(path))
    # KServe's SDK asks here whether a server of version 1 is alive.
    alive = {"status": body.pop("status")} if path == "/" else {}

    assert alive in ({}, {"status": "alive"})
    assert set(body) == {"name", "version", "extensions"}
    assert body["name"] == "ferry"
    assert {"model_repository", "model_configuration", "logging"} <= set(body["extensions"])
    assert "trace" in body["extensions"]


@pytest.mark.parametrize("path", ["/v2/models/arithmetic", "/v2/models/arithmetic/versions/1"])
def test_metadata_names_inputs_and_outputs_with_the_batch_dimension(
    client: FlaskClient, path: str
) -> None:
    assert answer(client.get(path)) == {
        "name": "arithmetic",
        "versions": ["1"],
        "platform": "pytorch_libtorch",
        "inputs": [
            {"name": "a", "datatype": "FP32", "shape": [-1, 2, 3]},
            {"name": "b", "datatype": "FP32", "shape": [-1, 2, 3]},
        ],
        "outputs": [
            {"name": "sum__0", "datatype": "FP32", "shape": [-1, 2, 3]},
            {"name": "difference__1", "datatype": "FP32", "shape": [-1, 2, 3]},
        ],
    }


def test_live_ready_and_model_ready_are_answered(client: FlaskClient) -> None:
    ready = {"name": "picky", "ready": True}

    assert answer(client.get("/v2/health/live")) == {"live": True}
    assert answer(client.get("/v2/health/ready")) == {"ready": True}
    assert answer(client.get("/v2/models/picky/ready")) == ready
    assert answer(client.get("/v2/models/picky/versions/1/ready")) == ready


# Neighbours.


def test_a_request_on_which_the_model_raises_leaves_its_31_neighbours_alone(app: Flask) -> None:
    rows = [[index, index + 0.5] for index in range(32)]
    rows[13] = [-1.0, 1.0]

    def ask(row: list[float]) -> Any:
        body = {"inputs": [tensor(row, [1, 2])]}
        return app.test_client().post("/v2/models/picky/infer", json=body)

    with ThreadPoolExecutor(32) as pool:
        responses = list(pool.map(ask, rows))

    assert "no negative numbers" in refusal(responses.pop(13), 500, "model_failed")
    rows.pop(13)
    for row, response in zip(rows, responses, strict=True):
        assert answer(response)["outputs"][0]["data"] == [2 * number for number in row]
    # The 32 were one batch at first: only its halves could have run without the culprit.
    assert max(answer(response)["timings"]["batch_size"] for response in responses) == 16


def test_a_request_refused_among_31_leaves_its_neighbours_alone(app: Flask) -> None:
    bodies: list[Any] = [{"inputs": [tensor([index, 1], [1, 2])]} for index in range(32)]
    bodies[13] = {"inputs": [tensor([13, "x"], [1, 2])]}

    def ask(body: Any) -> Any:
        return app.test_client().post("/v2/models/picky/infer", json=body)

    with ThreadPoolExecutor(32) as pool:
        responses = list(pool.map(ask, bodies))

    refusal(responses.pop(13))
    indices = [index for index in range(32) if index != 13]
    for index, response in zip(indices, responses, strict=True):
        assert answer(response)["outputs"][0]["data"] == [2 * index, 2]
    assert max(answer(response)["timings"]["batch_size"] for response in responses) == 31
