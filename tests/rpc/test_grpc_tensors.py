"""Tensors over gRPC, raw and typed, are what they are over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import echo_models
import grpc
import numpy as np
import pytest
from echo_models import add_arithmetic, add_echo
from ferry_processes import free_port, running_worker
from flask.testing import FlaskClient
from grpc_process import address, grpc_client, refused, running_grpc, tensor
from ml_dtypes import bfloat16
from tritonclient.grpc import InferenceServerClient, InferRequestedOutput, service_pb2
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub
from tritonclient.utils import deserialize_bytes_tensor

from api.app import create_app
from api.rpc.contents import FIELDS, typed_data
from shared.datatypes import NUMPY_TYPES
from shared.errors import BadRequest
from shared.settings import Settings

VALUES: dict[str, list[Any]] = {
    **echo_models.VALUES,
    "FP16": [-1.5, 0.0, 65504.0, 6e-8],
    "BF16": [-1.5, 0.0, 3.3895314e38, 9.2e-41],
    "BYTES": [text.encode() for text in echo_models.VALUES["BYTES"]],
}
Input = service_pb2.ModelInferRequest.InferInputTensor


def array(datatype: str) -> Any:
    return np.array(VALUES[datatype], NUMPY_TYPES[datatype]).reshape(2, 2)


@pytest.fixture(scope="module")
def settings(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """A worker that serves an echo of each datatype, and `arithmetic`; and a gRPC server."""
    models = tmp_path_factory.mktemp("models")
    for datatype in VALUES:
        add_echo(models, datatype)
    add_arithmetic(models)
    settings = Settings(
        redis_url=redis_url, key_prefix="grpc-tensors", models=str(models), grpc_port=free_port()
    )
    with running_worker(settings), running_grpc(settings):
        yield settings


@pytest.fixture(scope="module")
def client(settings: Settings) -> Iterator[InferenceServerClient]:
    with grpc_client(settings) as client:
        yield client


@pytest.fixture(scope="module")
def stub(settings: Settings) -> Iterator[GRPCInferenceServiceStub]:
    with grpc.insecure_channel(address(settings)) as channel:
        yield GRPCInferenceServiceStub(channel)


@pytest.fixture(scope="module")
def http(settings: Settings) -> FlaskClient:
    return create_app(settings).test_client()


def request(datatype: str, **fields: Any) -> service_pb2.ModelInferRequest:
    """Return a request of two rows whose input has these `fields`."""
    return service_pb2.ModelInferRequest(
        model_name=f"echo_{datatype}",
        inputs=[Input(name="x", datatype=datatype, shape=[2, 2], **fields)],
    )


def typed(datatype: str, values: list[Any]) -> service_pb2.ModelInferRequest:
    return request(datatype, contents={FIELDS[datatype]: values})


def refusal(stub: GRPCInferenceServiceStub, asked: service_pb2.ModelInferRequest) -> str:
    with pytest.raises(grpc.RpcError) as raised:
        stub.ModelInfer(asked)
    assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    return str(raised.value.details())


def pair() -> list[Any]:
    """Return arithmetic's inputs: b first, and a."""
    a = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
    return [tensor(10 * a, "b"), tensor(a, "a")]


# Every datatype.


def test_the_values_are_of_all_datatypes() -> None:
    assert set(VALUES) == set(NUMPY_TYPES) == set(FIELDS) | {"FP16", "BF16"}


@pytest.mark.parametrize("datatype", sorted(set(VALUES) - {"BF16"}))
def test_a_raw_tensor_comes_back_as_it_went(client: InferenceServerClient, datatype: str) -> None:
    sent = array(datatype)

    result = client.infer(f"echo_{datatype}", [tensor(sent)])

    (output,) = result.get_response().outputs
    assert (output.datatype, list(output.shape)) == (datatype, [2, 2])
    assert result.as_numpy(output.name).tolist() == sent.tolist()


def test_bf16_comes_back_bit_by_bit(stub: GRPCInferenceServiceStub) -> None:
    asked = request("BF16")
    asked.raw_input_contents.append(array("BF16").tobytes())

    response = stub.ModelInfer(asked)

    assert response.outputs[0].datatype == "BF16"
    assert np.frombuffer(response.raw_output_contents[0], bfloat16).tolist() == [
        float(bfloat16(value)) for value in VALUES["BF16"]
    ]


@pytest.mark.parametrize("datatype", FIELDS)
def test_a_typed_tensor_comes_back_raw(stub: GRPCInferenceServiceStub, datatype: str) -> None:
    response = stub.ModelInfer(typed(datatype, VALUES[datatype]))

    (raw,) = response.raw_output_contents
    sent = array(datatype)
    if datatype == "BYTES":
        assert deserialize_bytes_tensor(raw).tolist() == VALUES[datatype]
    else:
        assert raw == sent.tobytes()
    assert not response.outputs[0].HasField("contents")


# The same as over HTTP.


@pytest.mark.parametrize("datatype", sorted(set(VALUES) - {"FP16", "BF16"}))
def test_grpc_and_http_answer_the_same(
    client: InferenceServerClient, http: FlaskClient, datatype: str
) -> None:
    sent = array(datatype)
    data = [value.decode() if isinstance(value, bytes) else value for value in VALUES[datatype]]
    body = {"inputs": [{"name": "x", "shape": [2, 2], "datatype": datatype, "data": data}]}

    over_http = http.post(f"/v2/models/echo_{datatype}/infer", json={**body, "id": "7"}).get_json()
    result = client.infer(f"echo_{datatype}", [tensor(sent)], request_id="7")

    response, (output,) = result.get_response(), over_http["outputs"]
    assert response.model_name == over_http["model_name"]
    assert response.model_version == over_http["model_version"]
    assert response.id == over_http["id"]
    assert response.parameters.keys() == over_http["timings"].keys()
    assert response.outputs[0].datatype == output["datatype"]
    assert list(response.outputs[0].shape) == output["shape"]
    found = result.as_numpy(output["name"]).ravel()
    if datatype == "BYTES":
        assert [item.decode() for item in found] == output["data"]
    else:
        assert found.tolist() == np.array(output["data"], sent.dtype).tolist()


@pytest.mark.parametrize(
    "wanted",
    [
        [],
        [("difference__1", 0)],
        [("difference__1", 0), ("sum__0", 0)],
        [("sum__0", 2), ("difference__1", 0)],
        [("sum__0", 100)],
    ],
)
def test_outputs_and_classes_are_those_of_http_in_the_order_asked(
    client: InferenceServerClient, http: FlaskClient, wanted: list[tuple[str, int]]
) -> None:
    a = list(range(12))
    inputs = [
        {"name": "b", "shape": [2, 2, 3], "datatype": "FP32", "data": [10 * each for each in a]},
        {"name": "a", "shape": [2, 2, 3], "datatype": "FP32", "data": a},
    ]
    outputs = [{"name": name, "parameters": {"classification": k}} for name, k in wanted]
    over_http = http.post(
        "/v2/models/arithmetic/infer", json={"inputs": inputs, "outputs": outputs}
    ).get_json()["outputs"]

    result = client.infer(
        "arithmetic", pair(), outputs=[InferRequestedOutput(name, k) for name, k in wanted]
    )

    found = result.get_response().outputs
    assert [each.name for each in found] == [each["name"] for each in over_http]
    assert len(found) == (len(wanted) or 2)
    for each in over_http:
        got = result.as_numpy(each["name"])
        assert list(got.shape) == each["shape"]
        texts = [item.decode() if isinstance(item, bytes) else item for item in got.ravel()]
        assert texts == each["data"]


def test_classes_are_value_and_index(client: InferenceServerClient) -> None:
    result = client.infer("arithmetic", pair(), outputs=[InferRequestedOutput("sum__0", 2)])

    assert result.as_numpy("sum__0").tolist() == [
        [b"55.000000:5", b"44.000000:4"],
        [b"121.000000:5", b"110.000000:4"],
    ]


# What does not fit.


def test_raw_and_typed_contents_do_not_go_together(stub: GRPCInferenceServiceStub) -> None:
    asked = typed("INT32", VALUES["INT32"])
    asked.raw_input_contents.append(array("INT32").tobytes())

    assert refusal(stub, asked) == (
        "contents field must not be specified when using raw_input_contents for 'x' "
        "for model 'echo_INT32'"
    )


def test_every_input_has_raw_contents_or_none_has(stub: GRPCInferenceServiceStub) -> None:
    asked = request("INT32")
    asked.raw_input_contents.extend([array("INT32").tobytes()] * 2)

    assert refusal(stub, asked).startswith("there are 2 raw_input_contents for 1 inputs")


def test_raw_contents_have_the_size_of_their_shape(stub: GRPCInferenceServiceStub) -> None:
    asked = request("INT32")
    asked.raw_input_contents.append(bytes(15))

    assert refusal(stub, asked) == (
        "input 'x': 15 bytes of binary data, INT32 of shape [2, 2] has 16"
    )


@pytest.mark.parametrize(
    ("datatype", "fields", "message"),
    [
        ("FP32", {"fp32_contents": [1.0]}, "fp32_contents has 1 elements, shape [2, 2] wants 4"),
        (
            "FP32",
            {"fp64_contents": [1.0] * 4},
            "FP32 belongs into fp32_contents, and nothing else, not ['fp64_contents']",
        ),
        ("FP32", {}, "FP32 belongs into fp32_contents, and nothing else, not []"),
        ("INT8", {"int_contents": [0, 0, 0, 128]}, "an element is beyond what INT8 holds"),
        ("INT8", {"int_contents": [0, 0, 0, -129]}, "an element is beyond what INT8 holds"),
        ("UINT16", {"uint_contents": [2**16] * 4}, "an element is beyond what UINT16 holds"),
        ("FP16", {"fp32_contents": [1.0] * 4}, "FP16 has no typed contents, send raw_input_c"),
        ("BF16", {}, "BF16 has no typed contents, send raw_input_contents"),
    ],
)
def test_typed_contents_fit_datatype_and_shape(
    datatype: str, fields: dict[str, list[Any]], message: str
) -> None:
    given = Input(name="x", datatype=datatype, shape=[2, 2], contents=fields)

    with pytest.raises(BadRequest) as caught:
        typed_data(given, "input 'x'")

    assert caught.value.message.startswith(f"input 'x': {message}")


def test_a_datatype_that_does_not_exist_is_named(stub: GRPCInferenceServiceStub) -> None:
    asked = request("INT32")
    asked.inputs[0].datatype = "INT33"

    assert refusal(stub, asked) == "input 'x': unknown datatype 'INT33', the model wants INT32"


@pytest.mark.parametrize("shape", [[2, -2], [-2, -2], [2]])
def test_a_shape_that_does_not_fit_is_refused(
    stub: GRPCInferenceServiceStub, shape: list[int]
) -> None:
    asked = request("INT32")
    asked.inputs[0].shape[:] = shape
    asked.raw_input_contents.append(array("INT32").tobytes())

    assert refusal(stub, asked).startswith("input 'x': shape")


def test_a_parameter_without_a_value_is_refused(stub: GRPCInferenceServiceStub) -> None:
    asked = typed("INT32", VALUES["INT32"])
    asked.parameters["colour"].CopyFrom(service_pb2.InferParameter())

    assert refusal(stub, asked) == "parameter 'colour' of the request has no value"


def test_an_output_that_the_model_lacks_is_refused(client: InferenceServerClient) -> None:
    code, message = refused(
        client.infer, "arithmetic", pair(), outputs=[InferRequestedOutput("product")]
    )

    assert code == "INVALID_ARGUMENT"
    assert message.startswith("unknown output 'product'")
