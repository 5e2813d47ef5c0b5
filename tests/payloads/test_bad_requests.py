"""Every JSON body and URL that the API must refuse, and that nothing of it reaches the queue.

The models stand in the registry only: what is refused needs no worker, and what would be accepted
by mistake stays on the queue, where `nothing_is_queued` finds it after each test.
"""

from __future__ import annotations

import io
import json
import struct
import warnings
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
from answers import refusal
from flask import Flask
from flask.testing import FlaskClient
from PIL import Image
from registered import register, spec

from api.app import create_app
from api.payloads.infer_request import check_missing
from shared.errors import BadRequest
from shared.inputs.pictures import limit_pictures
from shared.model_spec import ImageInput, ModelSpec, TensorSpec
from shared.request_queue.api_end import QueueKeys
from shared.settings import Settings
from shared.wire.client import connect

INFER = "/v2/models/numbers/infer"
TENSOR_SENT = """: send {"input_tensor": rows}"""
FREE_INFER = "/v2/models/free/infer"
NUMBERS = spec("numbers", TensorSpec(name="x", datatype="FP32", dims=(4,)))
FREE = spec("free", TensorSpec(name="rows", datatype="FP32", dims=(-1,)))
WHOLE = spec("whole", TensorSpec(name="x", datatype="UINT8", dims=(4,)))
TRUTHS = spec("truths", TensorSpec(name="x", datatype="BOOL", dims=(4,)))
WORDS = spec("words", TensorSpec(name="x", datatype="BYTES", dims=(4,)))
HALVES = spec("halves", TensorSpec(name="x", datatype="FP16", dims=(4,)))
PAIRS = spec(
    "pairs",
    TensorSpec(name="a", datatype="FP32", dims=(2,)),
    TensorSpec(name="b", datatype="FP32", dims=(2,)),
)
PICTURES = spec(
    "pictures",
    TensorSpec(name="image", datatype="FP32", dims=(3, 8, 8)),
    image=ImageInput(input="image", height=8, width=8),
)
CROPS = spec(
    "crops",
    TensorSpec(name="image", datatype="FP32", dims=(3, 8, 8)),
    image=ImageInput(input="image", height=8, width=8, resize="crop", resize_size=256),
)
CAPTIONED = spec(
    "captioned",
    TensorSpec(name="image", datatype="FP32", dims=(3, 8, 8)),
    TensorSpec(name="caption", datatype="FP32", dims=(2,)),
    image=ImageInput(input="image", height=8, width=8),
)
MODELS = (NUMBERS, FREE, WHOLE, TRUTHS, WORDS, HALVES, PAIRS, PICTURES, CROPS, CAPTIONED)


@pytest.fixture(scope="module")
def settings(redis_url: str) -> Settings:
    return Settings(
        redis_url=redis_url,
        key_prefix="bad-requests",
        request_timeout_seconds=0.2,
        max_image_pixels=1_000_000,
    )


@pytest.fixture(scope="module")
def app(settings: Settings) -> Iterator[Flask]:
    register(settings, *MODELS)
    limit = Image.MAX_IMAGE_PIXELS
    yield create_app(settings)
    Image.MAX_IMAGE_PIXELS = limit  # Pillow's limit is the process's, not the app's


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


@pytest.fixture(autouse=True)
def nothing_is_queued(settings: Settings) -> Iterator[None]:
    redis = connect(settings.redis_url)
    yield
    queues = [QueueKeys(settings.key_prefix, model.key).queues[0] for model in MODELS]
    queued = [queue for queue in queues if redis.delete(queue)]
    redis.close()
    assert not queued


def tensor(**changes: Any) -> dict[str, Any]:
    """Return a tensor that `numbers` takes, but for `changes`."""
    return {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]} | changes


def refused(client: FlaskClient, *inputs: Any, path: str = INFER, **rest: Any) -> str:
    """Return why a body of `inputs` is refused with 400."""
    return refusal(client.post(path, json={"inputs": list(inputs), **rest}))


def refused_raw(client: FlaskClient, body: bytes | str, path: str = INFER) -> str:
    return refusal(client.post(path, data=body))


def nested(depth: int) -> Any:
    value: Any = 1.0
    for _ in range(depth):
        value = [value]
    return value


# Bodies that are no JSON object.


def test_malformed_json_is_refused(client: FlaskClient) -> None:
    assert "not JSON" in refused_raw(client, '{"inputs": [')


def test_bytes_that_are_not_utf8_are_refused(client: FlaskClient) -> None:
    assert "not JSON" in refused_raw(client, b'{"inputs": "\xff\xfe"}')


def test_an_empty_body_is_refused(client: FlaskClient) -> None:
    assert "empty" in refused_raw(client, "")


@pytest.mark.parametrize("body", ["[]", "1", "null", '"text"'])
def test_json_that_is_no_object_is_refused(client: FlaskClient, body: str) -> None:
    assert "must be a JSON object" in refused_raw(client, body)


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity", "1e400", "-1e400"])
def test_numbers_that_json_does_not_have_are_refused(client: FlaskClient, literal: str) -> None:
    body = json.dumps({"inputs": [tensor(data="here")]}).replace('"here"', f"[1,2,3,{literal}]")

    assert "not JSON" in refused_raw(client, body)


def test_a_number_beyond_fp32_is_refused(client: FlaskClient) -> None:
    assert "too large" in refused(client, tensor(data=[1, 2, 3, 1e300]))


def test_half_a_surrogate_pair_is_refused(client: FlaskClient) -> None:
    assert "not JSON" in refused_raw(client, '{"id": "\\ud800"}')


# Nesting.


def test_data_nested_200_deep_is_refused(client: FlaskClient) -> None:
    assert "nesting depth" in refused(client, tensor(data=nested(200)))


def test_strings_nested_200_deep_are_refused(client: FlaskClient) -> None:
    refused(client, tensor(datatype="BYTES", data=nested(200)), path="/v2/models/words/infer")


def test_parameters_nested_200_deep_are_refused(client: FlaskClient) -> None:
    assert "100" in refused(client, tensor(), parameters={"a": nested(200)})


def test_an_unknown_key_nested_200_deep_is_refused(client: FlaskClient) -> None:
    assert "100" in refused(client, tensor(), nobody_knows=nested(200))


def test_an_object_nested_200_deep_is_refused(client: FlaskClient) -> None:
    body = '{"a":' * 200 + "1" + "}" * 200

    assert "100" in refused_raw(client, body)


def test_nesting_beyond_the_parsers_own_limit_is_refused(client: FlaskClient) -> None:
    assert "at least 50000 values" in refused_raw(client, '{"a":' + "[" * 100_000)
    assert "not JSON" in refused_raw(client, '{"a":' + "[" * 4000)


def test_input_tensor_nested_200_deep_is_refused(client: FlaskClient) -> None:
    body = {"input_tensor": nested(200)}

    assert "deep" in refusal(client.post("/predict/numbers", json=body))


# Inputs and outputs by name.


def test_inputs_must_be_a_list(client: FlaskClient) -> None:
    message = refusal(client.post(INFER, json={"inputs": tensor()}))

    assert message == '"inputs" must be a list of tensors, not an object'


def test_a_body_without_inputs_is_refused(client: FlaskClient) -> None:
    assert "not null" in refusal(client.post(INFER, json={}))


@pytest.mark.parametrize("item", [None, 1, "x", [], {}, {"name": 1}, {"name": None}])
def test_an_input_without_a_name_is_refused(client: FlaskClient, item: Any) -> None:
    assert refused(client, item) == "inputs[0] must be an object with a name"


def test_a_picture_alone_is_refused_where_the_model_wants_more(client: FlaskClient) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")

    message = refusal(client.post("/predict/captioned", data=buffer.getvalue()))

    assert message == "missing input 'caption': 'captioned' wants ['image', 'caption']"


def test_a_missing_input_is_named(client: FlaskClient) -> None:
    a = tensor(name="a", shape=[1, 2], data=[1, 2])

    assert "missing input 'b'" in refused(client, a, path="/v2/models/pairs/infer")


def test_no_inputs_at_all_are_refused(client: FlaskClient) -> None:
    assert "missing input 'x'" in refused(client)


def test_an_unknown_input_is_named_beside_the_known_ones(client: FlaskClient) -> None:
    message = refused(client, tensor(name="y"))

    assert message == "unknown input 'y': the inputs of 'numbers' are ['x']"


def test_no_input_is_no_request_of_a_model_that_counts_rows() -> None:
    ends = {
        name: TensorSpec(name=name, datatype="FP32", dims=(2,), optional=True) for name in "aby"
    }
    model = ModelSpec(
        name="m", version="1", platform="p", max_batch_size=8,
        inputs=(ends["a"], ends["b"]), outputs=(ends["y"],),
    )  # fmt: skip

    with pytest.raises(BadRequest, match=r"takes \['a', 'b'\], and one says how many rows"):
        check_missing((), model)
    check_missing((), model.model_copy(update={"max_batch_size": 0}))


def test_an_input_given_twice_is_refused(client: FlaskClient) -> None:
    assert refused(client, tensor(), tensor()) == "input 'x' is given twice"


def test_an_unknown_output_is_refused(client: FlaskClient) -> None:
    assert "unknown output 'y'" in refused(client, tensor(), outputs=[{"name": "y"}])


def test_an_output_requested_twice_is_refused(client: FlaskClient) -> None:
    twice = [{"name": "out"}, {"name": "out"}]

    message = refused(client, tensor(), outputs=twice)

    assert message == "Duplicate output name 'out' is not allowed in a request"


@pytest.mark.parametrize("outputs", [{}, "out", [1], [{}], [None]])
def test_outputs_that_are_no_list_of_names_are_refused(client: FlaskClient, outputs: Any) -> None:
    assert "output" in refused(client, tensor(), outputs=outputs)


@pytest.mark.parametrize("request_id", [1, True, [], {}])
def test_an_id_that_is_no_string_is_refused(client: FlaskClient, request_id: Any) -> None:
    assert '"id" must be a string' in refused(client, tensor(), id=request_id)


@pytest.mark.parametrize("parameters", [[], "a", 1, {"a": None}, {"a": [1]}, {"a": {}}])
def test_parameters_that_are_no_plain_values_are_refused(
    client: FlaskClient, parameters: Any
) -> None:
    assert "of the request" in refused(client, tensor(), parameters=parameters)
    assert "of input 'x'" in refused(client, tensor(parameters=parameters))


# Shape, datatype, element count.


def test_a_wrong_number_of_dimensions_is_refused(client: FlaskClient) -> None:
    message = refused(client, tensor(shape=[4]))

    assert message == "input 'x': shape [4] has 1 dimensions, the model wants [-1, 4]"


def test_a_wrong_size_is_refused(client: FlaskClient) -> None:
    message = refused(client, tensor(shape=[1, 5], data=[1, 2, 3, 4, 5]))

    assert message == "input 'x': shape [1, 5], the model wants [-1, 4]"


@pytest.mark.parametrize("shape", [[-1, 4], [1, -4], [1.0, 4], ["1", 4], [True, 4], None, 4, "x"])
def test_a_shape_that_is_no_list_of_counts_is_refused(client: FlaskClient, shape: Any) -> None:
    assert "shape must be a list of numbers" in refused(client, tensor(shape=shape))


def test_a_shape_without_elements_is_refused(client: FlaskClient) -> None:
    message = refused(client, tensor(name="rows", shape=[1, 0], data=[]), path=FREE_INFER)

    assert message == "input 'rows': shape [1, 0] has no elements"


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ([2**63 - 1, 4], "causes total element count to exceed maximum size of"),
        ([16, 2**60 + 2], "causes total element count to exceed maximum size of"),
        ([4, 2**60 + 2], "byte size overflow for input 'x'"),
    ],
)
def test_a_size_beyond_63_bits_is_refused_in_tritons_words(
    client: FlaskClient, shape: list[int], message: str
) -> None:
    assert message in refused(client, tensor(shape=shape, data=[1.0]))


def test_a_shape_beyond_64_bits_is_refused(client: FlaskClient) -> None:
    refused_raw(client, json.dumps({"inputs": [tensor(shape=[2**70, 4])]}))


def test_a_batch_above_the_maximum_is_refused_in_tritons_words(client: FlaskClient) -> None:
    message = refused(client, tensor(shape=[33, 4], data=[0] * 132))

    assert message.startswith("inference request batch-size must be <= 32 for 'numbers'")


def test_inputs_of_different_batch_sizes_are_refused(client: FlaskClient) -> None:
    a = tensor(name="a", shape=[1, 2], data=[1, 2])
    b = tensor(name="b", shape=[2, 2], data=[1, 2, 3, 4])

    assert "same batch size" in refused(client, a, b, path="/v2/models/pairs/infer")


def test_another_datatype_than_the_models_is_refused(client: FlaskClient) -> None:
    message = refused(client, tensor(datatype="FP64"))

    assert message == "input 'x': datatype FP64, the model wants FP32"


@pytest.mark.parametrize("datatype", ["float", "fp32", "", None, 32, ["FP32"], {}])
def test_an_unknown_datatype_is_refused(client: FlaskClient, datatype: Any) -> None:
    assert "unknown datatype" in refused(client, tensor(datatype=datatype))


def test_half_precision_in_json_is_refused(client: FlaskClient) -> None:
    message = refused(client, tensor(datatype="FP16"), path="/v2/models/halves/infer")

    assert "binary data only" in message


@pytest.mark.parametrize("data", [[1, 2, 3], [1, 2, 3, 4, 5], []])
def test_a_wrong_element_count_is_refused(client: FlaskClient, data: list[int]) -> None:
    message = refused(client, tensor(data=data))

    assert message == f"input 'x': data has {len(data)} elements, shape [1, 4] wants 4"


def test_data_nested_in_another_shape_is_refused(client: FlaskClient) -> None:
    assert "nested as [2, 2]" in refused(client, tensor(data=[[1, 2], [3, 4]]))


@pytest.mark.parametrize("data", [[[1, 2, 3], [4]], [[1, 2, 3], 4], [1, [2, 3, 4]], [[1, 2], []]])
def test_ragged_lists_are_refused(client: FlaskClient, data: Any) -> None:
    assert "differ in length" in refused(client, tensor(data=data))


def test_ragged_lists_of_strings_are_refused(client: FlaskClient) -> None:
    words = tensor(datatype="BYTES", data=[["a", "b", "c"], ["d"]])

    assert "same length" in refused(client, words, path="/v2/models/words/infer")


# Elements.


@pytest.mark.parametrize("data", [1, "1234", {"0": 1}, True])
def test_data_that_is_no_list_is_refused(client: FlaskClient, data: Any) -> None:
    assert "data must be a list" in refused(client, tensor(data=data))


def test_an_input_without_data_is_refused(client: FlaskClient) -> None:
    item = tensor()
    del item["data"]

    for given in (item, tensor(data=None)):
        assert refused(client, given) == "input 'x': data is missing"


@pytest.mark.parametrize("data", [["1", "2", "3", "4"], [1, 2, 3, "4"], [1.5, "x", True, 4]])
def test_strings_where_numbers_belong_are_refused(client: FlaskClient, data: Any) -> None:
    assert "where numbers of FP32 belong" in refused(client, tensor(data=data))


@pytest.mark.parametrize("data", [[True] * 4, [1, 2, 3, True], [[0.5, 1, False, 2]]])
@pytest.mark.parametrize("model", ["numbers", "whole"])
def test_booleans_where_numbers_belong_are_refused(
    client: FlaskClient, data: Any, model: str
) -> None:
    datatype = {"numbers": "FP32", "whole": "UINT8"}[model]

    message = refused(
        client, tensor(data=data, datatype=datatype), path=f"/v2/models/{model}/infer"
    )

    assert "booleans" in message


@pytest.mark.parametrize("data", [[1, 2, 3, None], [None] * 4, [1, 2, 3, {}], [{"a": 1}] * 4])
def test_null_and_objects_where_numbers_belong_are_refused(client: FlaskClient, data: Any) -> None:
    assert "where numbers of FP32 belong" in refused(client, tensor(data=data))


@pytest.mark.parametrize("data", [[1.5, 2, 3, 4], [1.0, 2.0, 3.0, 4.0]])
def test_floats_where_whole_numbers_belong_are_refused(client: FlaskClient, data: Any) -> None:
    message = refused(client, tensor(datatype="UINT8", data=data), path="/v2/models/whole/infer")

    assert "UINT8" in message and "fractions" in message


@pytest.mark.parametrize("wrong", [256, -1, 2**63, -(2**63), 2**64 - 1])
def test_whole_numbers_out_of_range_are_refused(client: FlaskClient, wrong: int) -> None:
    item = tensor(datatype="UINT8", data=[1, 2, 3, wrong])

    assert "out of the range of UINT8" in refused(client, item, path="/v2/models/whole/infer")


@pytest.mark.parametrize("wrong", [2**64, 2**200, 1e300])
def test_whole_numbers_beyond_64_bits_are_refused(client: FlaskClient, wrong: float) -> None:
    item = tensor(datatype="UINT8", data=[1, 2, 3, wrong])

    message = refused_raw(client, json.dumps({"inputs": [item]}), "/v2/models/whole/infer")

    assert "64 bits" in message


@pytest.mark.parametrize("data", [[0, 1, 0, 1], [True, False, True, 1], ["true"] * 4, [None] * 4])
def test_other_things_where_booleans_belong_are_refused(client: FlaskClient, data: Any) -> None:
    item = tensor(datatype="BOOL", data=data)

    assert "must be booleans" in refused(client, item, path="/v2/models/truths/infer")


@pytest.mark.parametrize("data", [[1, 2, 3, 4], ["a", "b", "c", None], ["a", "b", "c", True]])
def test_other_things_where_strings_belong_are_refused(client: FlaskClient, data: Any) -> None:
    item = tensor(datatype="BYTES", data=data)

    assert "must be strings" in refused(client, item, path="/v2/models/words/infer")


# Models, versions, routes, methods.


@pytest.mark.parametrize(
    "path", ["/v2/models/nobody/infer", "/predict/nobody", "/v2/models/nobody/versions/1/infer"]
)
def test_an_unknown_model_is_not_found(client: FlaskClient, path: str) -> None:
    response = client.post(path, json={"input_tensor": [[1, 2, 3, 4]]})

    message = refusal(response, 404, "unknown_model")
    assert message == "Request for unknown model: 'nobody' is not found"


@pytest.mark.parametrize("path", ["", "/ready", "/versions/1", "/versions/1/ready"])
def test_metadata_of_an_unknown_model_is_not_found(client: FlaskClient, path: str) -> None:
    refusal(client.get(f"/v2/models/nobody{path}"), 404, "unknown_model")


@pytest.mark.parametrize("version", ["2", "0", "01", "latest", "-1", "1.0", "²", "9" * 3000])
def test_an_unknown_version_is_not_found(client: FlaskClient, version: str) -> None:
    infer = client.post(f"/v2/models/numbers/versions/{version}/infer", json={})
    predict = client.post(f"/predict/numbers/versions/{version}", json={"input_tensor": [[1]]})
    metadata = client.get(f"/v2/models/numbers/versions/{version}")

    for response in (infer, predict, metadata):
        refusal(response, 404, "unknown_model")


@pytest.mark.parametrize("path", ["/v2/nowhere", "/predictions", "/v2/models/numbers/inferno"])
def test_an_unknown_route_is_not_found(client: FlaskClient, path: str) -> None:
    assert path in refusal(client.get(path), 404, "unknown_route")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", INFER, "POST"),
        ("DELETE", INFER, "POST"),
        ("GET", "/predict", "POST"),
        ("POST", "/v2/health/live", "GET"),
        ("PUT", "/v2/models/numbers", "GET"),
        ("FERRY", "/v2", "GET"),
    ],
)
def test_an_unknown_method_is_not_allowed(
    client: FlaskClient, method: str, path: str, allowed: str
) -> None:
    response = client.open(path, method=method)

    refusal(response, 405, "method_not_allowed")
    assert allowed in response.headers["Allow"].split(", ")


# /predict.


def test_predict_with_an_empty_body_is_refused(client: FlaskClient) -> None:
    assert "empty" in refused_raw(client, "", "/predict/pictures")


def test_predict_with_malformed_json_is_refused(client: FlaskClient) -> None:
    assert "not JSON" in refused_raw(client, '{"input_tensor": [[1, 2', "/predict/numbers")


def test_predict_needs_a_key_it_knows(client: FlaskClient) -> None:
    message = refusal(client.post("/predict/numbers", json={"tensor": [[1]]}))

    assert message == """the JSON body needs "text" or "input_tensor", it has ['tensor']"""


@pytest.mark.parametrize(
    "rows", [[[1, 2, 3]], [1, 2, 3, 4], [[1, 2, 3, "4"]], [[1, 2, 3, True]], [[1, 2], [3]], [[]]]
)
def test_an_input_tensor_that_does_not_fit_is_refused(client: FlaskClient, rows: Any) -> None:
    assert "input_tensor" in refusal(client.post("/predict/numbers", json={"input_tensor": rows}))


def test_an_input_tensor_above_the_maximum_batch_is_refused(client: FlaskClient) -> None:
    response = client.post("/predict/numbers", json={"input_tensor": [[1, 2, 3, 4]] * 33})

    assert "batch-size must be <= 32" in refusal(response)


def test_an_input_tensor_for_a_model_of_two_inputs_is_refused(client: FlaskClient) -> None:
    response = client.post("/predict/pairs", json={"input_tensor": [[1, 2]]})

    assert "2 inputs" in refusal(response)


def test_text_for_a_model_of_numbers_is_refused(client: FlaskClient) -> None:
    message = refusal(client.post("/predict/numbers", json={"text": "hello"}))

    assert message == "'numbers' takes tensor input, not text" + TENSOR_SENT


def test_predict_without_a_name_lists_the_candidates(client: FlaskClient) -> None:
    message = refusal(client.post("/predict", json={"input_tensor": [[1, 2, 3, 4]]}))

    assert message.startswith("7 models take tensor input")
    assert all(repr(model.name) in message for model in MODELS if not model.image)


@pytest.mark.parametrize("text", [1, None, True, {}, [1], ["a", None]])
def test_text_that_is_no_string_is_refused(client: FlaskClient, text: Any) -> None:
    assert '"text" must be a string' in refusal(client.post("/predict", json={"text": text}))


@pytest.mark.parametrize(
    "top_k",
    ["0", "-1", "x", "", "1001", "1e3", "²", "99999999999999", "00010099", "000001" + "0" * 5000],
)
def test_a_top_k_that_is_no_small_number_is_refused_unqueued(
    client: FlaskClient, top_k: str
) -> None:
    response = client.post(f"/predict/pictures?top_k={top_k}", data=png(Image.new("RGB", (8, 8))))

    assert "top_k" in refusal(response)


# Pictures.


def png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def declared_png(width: int, height: int) -> bytes:
    """Return a PNG whose header declares a size, with hardly any data behind it."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + crc

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")


def refused_picture(client: FlaskClient, data: bytes) -> str:
    """Return why a picture is refused, which must be the same raw and as a multipart file."""
    raw = refusal(client.post("/predict/pictures", data=data))
    part = {"file": (io.BytesIO(data), "picture.jpg")}
    assert refusal(client.post("/predict/pictures", data=part)) == raw
    return raw


def test_a_text_file_as_a_picture_is_refused(client: FlaskClient) -> None:
    message = refused_picture(client, b"Dear Sir or Madam,\nthis is no picture.\n")

    assert message.startswith(
        "the picture is in no format that Ferry knows: expected one of JPEG, PNG"
    )


def test_a_truncated_jpeg_is_refused(client: FlaskClient) -> None:
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(buffer, "JPEG")

    assert "cannot be decoded" in refused_picture(client, buffer.getvalue()[: buffer.tell() // 2])


def test_a_truncated_png_is_refused(client: FlaskClient) -> None:
    whole = png(Image.effect_noise((64, 64), 50))

    assert "cannot be decoded" in refused_picture(client, whole[: len(whole) // 2])


def test_a_jpeg_cut_within_its_header_is_refused(client: FlaskClient) -> None:
    refused_picture(client, b"\xff\xd8\xff\xe0\x00\x10JFIF")


def test_a_decompression_bomb_is_refused_before_it_is_decoded(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[object] = []
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decoded.append)

    message = refused_picture(client, declared_png(30_000, 30_000))

    assert message == "the picture declares more than 1000000 pixels, it is not decoded"
    assert not decoded


def test_a_picture_just_above_the_pixel_limit_is_refused(client: FlaskClient) -> None:
    assert "more than 1000000 pixels" in refused_picture(client, declared_png(1001, 1000))


def test_pictures_above_the_pixel_limit_together_are_refused_before_any_is_decoded(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[object] = []
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decoded.append)

    message = refused_together(client, "pictures", declared_png(900, 600), declared_png(900, 600))

    assert message == "the pictures have more than 1000000 pixels together"
    assert not decoded


def test_lines_that_would_be_huge_together_once_resized_are_refused(client: FlaskClient) -> None:
    line = png(Image.new("L", (10, 1)))

    assert "1000000 pixels together" in refused_together(client, "crops", line, line)


def refused_together(client: FlaskClient, model: str, *pictures: bytes) -> str:
    files = [(io.BytesIO(data), "a.png") for data in pictures]
    return refusal(client.post(f"/predict/{model}", data={"file": files}))


def test_the_pixel_limit_needs_no_help_from_pytests_warning_filters(client: FlaskClient) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        limit_pictures(1_000_000)

        message = refused_picture(client, declared_png(1001, 1000))

    assert "more than 1000000 pixels" in message


def test_a_line_that_would_be_huge_once_resized_is_refused(client: FlaskClient) -> None:
    line = png(Image.new("L", (100_000, 1)))

    assert "too long and thin" in refusal(client.post("/predict/crops", data=line))


def test_an_empty_file_part_is_refused(client: FlaskClient) -> None:
    response = client.post("/predict/pictures", data={"file": (io.BytesIO(), "picture.png")})

    assert refusal(response) == "the picture is empty"


def test_multipart_without_a_file_part_is_refused(client: FlaskClient) -> None:
    response = client.post("/predict/pictures", data={"image": (io.BytesIO(b"x"), "picture.png")})

    assert 'no part named "file"' in refusal(response)


@pytest.mark.parametrize("content_type", ["multipart/form-data", "multipart/form-data; boundary=x"])
def test_malformed_multipart_is_refused(client: FlaskClient, content_type: str) -> None:
    response = client.post("/predict/pictures", data=b"--y\r\nx", content_type=content_type)

    refusal(response)


def test_more_pictures_than_a_batch_holds_are_refused(client: FlaskClient) -> None:
    picture = png(Image.new("RGB", (8, 8)))
    response = client.post(
        "/predict/pictures", data={"file": [(io.BytesIO(picture), "a.png") for _ in range(33)]}
    )

    assert "batch-size must be <= 32" in refusal(response)


def test_one_bad_picture_among_several_is_named(client: FlaskClient) -> None:
    files = [png(Image.new("RGB", (8, 8))), b"no picture", png(Image.new("RGB", (8, 8)))]
    response = client.post(
        "/predict/pictures", data={"file": [(io.BytesIO(data), "a.png") for data in files]}
    )

    assert refusal(response).startswith("picture 1 is in no format that Ferry knows")


def test_a_picture_for_a_model_of_numbers_is_refused(client: FlaskClient) -> None:
    response = client.post("/predict/numbers", data=png(Image.new("RGB", (8, 8))))

    assert refusal(response) == "'numbers' takes tensor input, not image" + TENSOR_SENT
