"""A request of no rows is answered with no rows, over gRPC as over HTTP, and no model is asked.

The models stand in the registry only: what was pushed would never be answered.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from answers import answer, refusal
from ferry_processes import free_port
from flask.testing import FlaskClient
from grpc_process import grpc_client, running_grpc
from registered import register, spec
from tritonclient.grpc import InferenceServerClient, InferInput, InferRequestedOutput

from api.app import create_app
from shared.datatypes import NUMPY_TYPES
from shared.model_spec import ModelSpec, TensorSpec, TextInput
from shared.settings import Settings

JSON_TYPES = sorted(NUMPY_TYPES.keys() - {"FP16", "BF16"})


def model(name: str, datatype: str = "FP32", **changes: Any) -> ModelSpec:
    """Describe a model of x [4] with the outputs y [3] and z [-1, 2]."""
    outputs = (
        TensorSpec(name="y", datatype=datatype, dims=(3,), labels=("a", "b", "c")),
        TensorSpec(name="z", datatype="INT64", dims=(-1, 2)),
    )
    x = TensorSpec(name="x", datatype=datatype, dims=(4,))
    return spec(name, x).model_copy(update={"outputs": outputs} | changes)


TEXTS = spec("texts", TensorSpec(name="input_ids", datatype="INT64", dims=(-1,))).model_copy(
    update={"text": TextInput(tokenizer="0" * 32, max_length=8)}
)
STRINGS = spec("strings", TensorSpec(name="text", datatype="BYTES", dims=(1,)))
ONE = spec("one", TensorSpec(name="x", datatype="FP32", dims=(4,)))
WHOLE = model("whole", max_batch_size=0)
PAIR = spec(
    "pair",
    TensorSpec(name="a", datatype="FP32", dims=(4,)),
    TensorSpec(name="b", datatype="FP32", dims=(-1,)),
)
MODELS = (
    *(model(f"m_{each}", each) for each in NUMPY_TYPES), TEXTS, STRINGS, ONE, WHOLE, PAIR,
)  # fmt: skip


@pytest.fixture(scope="module")
def settings(redis_url: str) -> Settings:
    settings = Settings(
        redis_url=redis_url,
        key_prefix="no-rows",
        request_timeout_seconds=1.0,
        grpc_port=free_port(),
    )
    register(settings, *MODELS)
    return settings


@pytest.fixture(scope="module")
def client(settings: Settings) -> FlaskClient:
    return create_app(settings).test_client()


@pytest.fixture(scope="module")
def grpc(settings: Settings) -> Iterator[InferenceServerClient]:
    with running_grpc(settings), grpc_client(settings) as client:
        yield client


def asked(client: FlaskClient, name: str, *inputs: Any, **more: Any) -> Any:
    body = {"inputs": list(inputs), **more}
    return answer(client.post(f"/v2/models/{name}/infer", json=body))


def x(datatype: str = "FP32", shape: tuple[int, ...] = (0, 4)) -> dict[str, Any]:
    return {"name": "x", "datatype": datatype, "shape": list(shape), "data": []}


@pytest.mark.parametrize("datatype", JSON_TYPES)
def test_every_datatype_comes_back_empty(client: FlaskClient, datatype: str) -> None:
    body = asked(client, f"m_{datatype}", x(datatype))

    assert body["outputs"] == [
        {"name": "y", "datatype": datatype, "shape": [0, 3], "data": []},
        {"name": "z", "datatype": "INT64", "shape": [0, 0, 2], "data": []},
    ]
    assert body["timings"]["batch_size"] == 0


def test_the_outputs_are_those_that_were_asked_for(client: FlaskClient) -> None:
    asked_for = [{"name": "z"}, {"name": "y", "parameters": {"classification": 2}}]

    outputs = asked(client, "m_FP32", x(), outputs=asked_for)["outputs"]

    assert [(each["name"], each["datatype"], each["shape"]) for each in outputs] == [
        ("z", "INT64", [0, 0, 2]),
        ("y", "BYTES", [0, 2]),
    ]


@pytest.mark.parametrize("datatype", NUMPY_TYPES)
def test_over_grpc_raw_tensors_are_empty_too(grpc: InferenceServerClient, datatype: str) -> None:
    given = InferInput("x", [0, 4], datatype)
    given.set_data_from_numpy(np.empty((0, 4), NUMPY_TYPES[datatype]))

    result = grpc.infer(f"m_{datatype}", [given], outputs=[InferRequestedOutput("y")])

    assert list(result.get_output("y").shape) == [0, 3]
    assert result.get_output("y").datatype == datatype


def test_binary_data_of_no_bytes_is_a_tensor_of_no_rows(client: FlaskClient) -> None:
    given = x("BOOL") | {"parameters": {"binary_data_size": 0}}
    del given["data"]

    body = asked(client, "m_BOOL", given)

    assert body["outputs"][0]["shape"] == [0, 3]


@pytest.mark.parametrize(
    ("name", "body", "key", "found"),
    [
        ("one", {"instances": []}, "predictions", []),
        ("m_FP32", {"instances": []}, "predictions", []),
        ("pair", {"instances": []}, "predictions", []),
        ("texts", {"instances": []}, "predictions", []),
        ("strings", {"instances": []}, "predictions", []),
        ("one", {"inputs": []}, "outputs", []),
        ("m_FP32", {"inputs": {"x": []}}, "outputs", {"y": [], "z": []}),
        ("pair", {"inputs": {"a": [], "b": []}}, "outputs", []),
    ],
)
def test_version_1_answers_no_instances_with_no_predictions(
    client: FlaskClient, name: str, body: Any, key: str, found: Any
) -> None:
    assert answer(client.post(f"/v1/models/{name}:predict", json=body))[key] == found


@pytest.mark.parametrize(
    ("name", "body", "key"),
    [
        ("one", {"input_tensor": []}, "prediction"),
        ("texts", {"text": []}, "predictions"),
        ("strings", {"text": []}, "predictions"),
    ],
)
def test_predict_answers_an_empty_list_with_one(
    client: FlaskClient, name: str, body: Any, key: str
) -> None:
    assert answer(client.post(f"/predict/{name}", json=body))[key] == []


@pytest.mark.parametrize(
    ("name", "inputs", "said"),
    [
        ("one", [x(shape=(0, 5))], "shape [0, 5], the model wants [-1, 4]"),
        ("one", [x(shape=(1, 0))], "shape [1, 0], the model wants [-1, 4]"),
        ("one", [x() | {"data": [1.0]}], "data has 1 elements, shape [0, 4] wants 0"),
        ("whole", [x(shape=(0,))], "shape [0], the model wants [4]"),
        (
            "pair",
            [x() | {"name": "a"}, {"name": "b", "datatype": "FP32", "shape": [1, 1], "data": [1]}],
            "all inputs must have the same batch size, not [0, 1]",
        ),
        (
            "pair",
            [x() | {"name": "a"}, x(shape=(1, 0)) | {"name": "b"}],
            "shape [1, 0] has no elements",
        ),
    ],
)
def test_what_is_no_batch_of_no_rows_is_refused(
    client: FlaskClient, name: str, inputs: Any, said: str
) -> None:
    response = client.post(f"/v2/models/{name}/infer", json={"inputs": inputs})

    assert said in refusal(response)
