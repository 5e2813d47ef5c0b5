"""Binary tensor data behind the JSON: cut where the frame says, and refused where it lies.

What is refused here never reaches a queue: `parse_infer` comes before the push. Known answers are
worked by hand from Triton's document of the extension.
"""

from __future__ import annotations

import json
import struct
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from answers import refusal
from fake_backend import answered
from flask.testing import FlaskClient
from redis import Redis
from registered import register, spec
from waiting import wait_until

from api.app import create_app
from api.infer.render import render
from api.payloads import binary_tensors
from api.payloads.binary_tensors import HEADER, HEADER_VARIABLE, header_length
from api.payloads.infer_request import InferBody
from api.payloads.v2_json import parse_infer
from shared.errors import BadRequest
from shared.messages import AnswerForm, InferResult, RequestedOutput, Tensor
from shared.model_spec import ModelSpec, TensorSpec
from shared.request_queue.claimed import Claimed
from shared.request_queue.keys import QueueKeys
from shared.request_queue.worker_end import WorkQueue
from shared.settings import Settings
from shared.wire.client import connect
from shared.wire.wire import open_wire


def of(datatype: str, *dims: int, rows: int = 32) -> ModelSpec:
    """Describe a model of one input, x, that answers y of the same kind."""
    both = {"datatype": datatype, "dims": dims}
    return spec("m", TensorSpec(name="x", **both)).model_copy(
        update={"outputs": (TensorSpec(name="y", **both),), "max_batch_size": rows}
    )


NUMBERS = of("INT16", 2)
PAIRS = spec(
    "pairs",
    TensorSpec(name="a", datatype="INT16", dims=(2,)),
    TensorSpec(name="b", datatype="UINT8", dims=(3,)),
)


def item(size: Any = 4, **changes: Any) -> dict[str, Any]:
    """Return an input that NUMBERS takes, but for `changes`."""
    parameters = {"binary_data_size": size}
    return {"name": "x", "shape": [1, 2], "datatype": "INT16", "parameters": parameters} | changes


def frame(head: Any, *chunks: bytes) -> tuple[bytes, int]:
    """Return a body and the length of its JSON."""
    text = json.dumps(head).encode()
    return b"".join([text, *chunks]), len(text)


def parsed(head: Any, *chunks: bytes, model: ModelSpec = NUMBERS) -> InferBody:
    body, length = frame(head, *chunks)
    return parse_infer(body, model, length)


def refused(head: Any, *chunks: bytes, model: ModelSpec = NUMBERS) -> str:
    with pytest.raises(BadRequest) as caught:
        parsed(head, *chunks, model=model)
    return caught.value.message


def refused_input(size: Any, *chunks: bytes, model: ModelSpec = NUMBERS, **changes: Any) -> str:
    return refused({"inputs": [item(size, **changes)]}, *chunks, model=model)


def refused_raw(body: bytes, model: ModelSpec) -> str:
    with pytest.raises(BadRequest) as caught:
        parse_infer(body, model, 0)
    return caught.value.message


def elements(*items: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(each)) + each for each in items)


# Known answers.


def test_a_request_worked_by_hand_is_read() -> None:
    head = (
        b'{"id":"7","inputs":[{"name":"x","shape":[2,2],"datatype":"INT16",'
        b'"parameters":{"binary_data_size":8}}]}'
    )
    data = b"\x01\x00\xff\xff\x00\x01\x00\x80"

    body = parse_infer(head + data, NUMBERS, 103)

    assert len(head) == 103
    assert body.inputs[0].array().tolist() == [[1, -1], [256, -32768]]
    assert body.inputs[0][:3] == ("x", "INT16", (2, 2))
    assert (body.id, body.outputs, body.binary) == ("7", (), False)


def test_an_answer_worked_by_hand_is_written() -> None:
    model = PAIRS.model_copy(update={"outputs": PAIRS.inputs})
    result = InferResult(
        (
            Tensor("a", "INT16", (1, 2), b"\x01\x00\xff\xff"),
            Tensor("b", "UINT8", (1, 3), b"\x07\x08\x09"),
        )
    )

    answer = render(
        model,
        result,
        AnswerForm("infer", "7", outputs=(RequestedOutput("a", True), RequestedOutput("b"))),
    )
    length = int(dict(answer.headers)[HEADER])
    head = json.loads(answer.body[:length])

    assert answer.body[length:] == b"\x01\x00\xff\xff"
    assert answer.content_type == "application/octet-stream"
    assert head["id"] == "7"
    assert head["outputs"] == [
        {"name": "a", "datatype": "INT16", "shape": [1, 2], "parameters": {"binary_data_size": 4}},
        {"name": "b", "datatype": "UINT8", "shape": [1, 3], "data": [7, 8, 9]},
    ]


def test_binary_outputs_stand_one_behind_the_other_in_the_order_listed() -> None:
    model = PAIRS.model_copy(update={"outputs": PAIRS.inputs})
    result = InferResult(
        (Tensor("b", "UINT8", (1, 3), b"\7\x08\x09"), Tensor("a", "INT16", (1, 2), b"\1\0\2\0"))
    )

    answer = render(model, result, AnswerForm("infer", binary=True))

    assert answer.body.endswith(b"}\7\x08\x09\1\0\2\0")
    head = json.loads(answer.body[: int(dict(answer.headers)[HEADER])])
    sizes = [output["parameters"]["binary_data_size"] for output in head["outputs"]]
    assert sizes == [3, 4]


def test_an_answer_without_binary_outputs_has_no_header() -> None:
    result = InferResult((Tensor("y", "INT16", (1, 2), b"\1\0\2\0"),))

    answer = render(NUMBERS, result, AnswerForm("infer"))

    assert HEADER not in dict(answer.headers)
    assert json.loads(answer.body)["outputs"][0]["data"] == [1, 2]


def test_bytes_elements_worked_by_hand_are_read() -> None:
    data = b"\3\0\0\0abc\0\0\0\0"

    body = parsed({"inputs": [item(11, datatype="BYTES")]}, data, model=of("BYTES", 2))

    assert body.inputs[0].array().tolist() == [[b"abc", b""]]


def test_binary_and_json_inputs_are_mixed_in_any_order() -> None:
    a = item(4, name="a", datatype="INT16")
    b = {"name": "b", "shape": [1, 3], "datatype": "UINT8", "data": [7, 8, 9]}

    first = parsed({"inputs": [b, a]}, b"\1\0\2\0", model=PAIRS)
    second = parsed({"inputs": [a, b]}, b"\1\0\2\0", model=PAIRS)

    assert first == second
    assert [tensor.array().tolist() for tensor in first.inputs] == [[[1, 2]], [[7, 8, 9]]]


def test_two_binary_inputs_are_cut_in_the_order_they_are_listed_not_in_the_models() -> None:
    a = item(4, name="a", datatype="INT16")
    b = item(3, name="b", datatype="UINT8", shape=[1, 3])

    body = parsed({"inputs": [b, a]}, b"\7\x08\x09", b"\1\0\2\0", model=PAIRS)

    assert [tensor.array().tolist() for tensor in body.inputs] == [[[1, 2]], [[7, 8, 9]]]


# The header.


@pytest.mark.parametrize("value", ["-1", "+5", "5.0", "", "five", "0x10", "1e3", "5, 5", "٣", "²"])
def test_a_header_that_is_no_number_of_bytes_is_refused(value: str) -> None:
    with pytest.raises(BadRequest, match=HEADER):
        header_length({HEADER_VARIABLE: value}, 100)


@pytest.mark.parametrize("value", ["101", "9" * 18, "9" * 19, "9" * 5000])
def test_a_header_beyond_the_body_is_refused(value: str) -> None:
    with pytest.raises(BadRequest, match=HEADER):
        header_length({HEADER_VARIABLE: value}, 100)


def test_a_header_of_the_whole_body_leaves_no_binary_data() -> None:
    body, length = frame({"inputs": [item() | {"parameters": {}, "data": [1, 2]}]})

    assert header_length({HEADER_VARIABLE: str(length)}, len(body)) == length
    assert parse_infer(body, NUMBERS, length).inputs[0].array().tolist() == [[1, 2]]


def test_a_header_that_cuts_the_json_is_refused() -> None:
    body, length = frame({"inputs": [item()]}, b"\1\0\2\0")

    for wrong in (1, length - 1, length + 1):
        with pytest.raises(BadRequest, match="not JSON"):
            parse_infer(body, NUMBERS, wrong)


# Sizes that lie.


@pytest.mark.parametrize("size", [-1, True, False, 4.0, "4", 2**64 - 1, -(2**63)])
def test_a_binary_data_size_that_is_no_count_is_refused(size: Any) -> None:
    assert "binary_data_size" in refused_input(size, b"\1\0\2\0")


@pytest.mark.parametrize("size", [None, [4], {"a": 4}])
def test_a_binary_data_size_that_is_no_plain_value_is_refused(size: Any) -> None:
    assert "parameters" in refused_input(size, b"\1\0\2\0")


def test_a_binary_data_size_beyond_the_body_is_refused() -> None:
    assert refused_input(5, b"\1\0\2\0") == (
        "input 'x': \"binary_data_size\" is 5, only 4 bytes of the body are left"
    )


def test_a_binary_data_size_of_another_shape_is_refused() -> None:
    assert refused_input(6, b"\1\0\2\0\3\0") == (
        "input 'x': 6 bytes of binary data, INT16 of shape [1, 2] has 4"
    )
    assert "2 bytes of binary data" in refused_input(2, b"\1\0")


def test_bytes_left_over_are_refused() -> None:
    assert refused_input(4, b"\1\0\2\0", b"more") == (
        "4 bytes stand behind the last binary input of the body"
    )


def test_bytes_behind_json_inputs_are_refused() -> None:
    plain = item() | {"parameters": {}, "data": [1, 2]}

    assert "4 bytes stand behind" in refused({"inputs": [plain]}, b"\1\0\2\0")


def test_an_input_with_both_data_and_a_size_is_refused() -> None:
    assert "both" in refused_input(4, b"\1\0\2\0", data=[1, 2])


def test_a_size_without_the_header_is_refused() -> None:
    body, _ = frame({"inputs": [item()]})

    with pytest.raises(BadRequest, match="only 0 bytes of the body are left"):
        parse_infer(body, NUMBERS, None)


def test_two_inputs_may_not_take_the_same_bytes() -> None:
    a = item(4, name="a")
    b = item(3, name="b", datatype="UINT8", shape=[1, 3])

    assert "only 0 bytes" in refused({"inputs": [a, b]}, b"\1\0\2\0", model=PAIRS)


def test_an_input_given_twice_is_refused() -> None:
    assert "given twice" in refused({"inputs": [item(), item()]}, b"\1\0\2\0", b"\1\0\2\0")


# Dimensions that lie.


@pytest.mark.parametrize(
    "shape",
    [
        [-1, 2],
        [1, -2],
        [True, 2],
        [1.0, 2],
        ["1", 2],
        [None, 2],
        [[1], 2],
        "12",
        2,
        None,
        [1, 2**63],
    ],
)
def test_a_shape_that_is_no_list_of_counts_is_refused(shape: Any) -> None:
    assert "shape must be a list of numbers" in refused_input(4, b"\1\0\2\0", shape=shape)


@pytest.mark.parametrize("shape", [[0, 0], [1, 0]])
def test_a_shape_without_elements_is_refused(shape: list[int]) -> None:
    assert "shape" in refused_input(0, shape=shape, model=of("INT16", -1))


def test_a_count_of_elements_that_would_overflow_is_refused() -> None:
    # 2**32 * 2**32 elements are none at all to whoever counts in 64 bits.
    model = of("INT16", -1, -1, rows=0)

    message = refused_input(0, shape=[2**32, 2**32], model=model)

    assert "causes total element count to exceed maximum size" in message


def test_a_number_of_bytes_that_would_overflow_is_refused() -> None:
    # 2**62 elements of 4 bytes as well.
    model = of("FP32", -1, rows=0)

    message = refused_input(0, shape=[2**62], datatype="FP32", model=model)

    assert "byte size overflow for input 'x'" in message


# Elements.


@pytest.mark.parametrize(
    "data",
    [
        b"\2\0\0\0ab\5\0\0\0abc",  # the second reaches past the end
        b"\2\0\0\0ab\xff\xff\xff\xff",
        b"\2\0\0\0ab\0\0\0",  # half a length
        elements(b"a" * 9),  # one instead of two
        elements(b"a", b"b", b"c"),  # three instead of two
        b"",
    ],
)
def test_bytes_elements_that_do_not_fit_are_refused(data: bytes) -> None:
    message = refused_input(len(data), data, model=of("BYTES", 2), datatype="BYTES")

    assert message.startswith("input 'x': ")


def test_more_bytes_elements_than_the_shape_has_are_not_all_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked_at: list[int] = []

    class Length:
        size = 4

        @staticmethod
        def unpack_from(data: Any, position: int) -> tuple[int]:
            looked_at.append(position)
            (length,) = struct.unpack_from("<I", data, position)
            return (length,)

    monkeypatch.setattr(binary_tensors, "LENGTH", Length)
    tracemalloc.start()
    # A quarter of a million empty elements, of which two are declared.
    message = refused_input(2**20, bytes(2**20), model=of("BYTES", 2), datatype="BYTES")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert message == "input 'x': 1048576 bytes of binary data are not 2 BYTES elements"
    assert looked_at == [0, 4]
    assert peak < 3 * 2**20


@pytest.mark.parametrize("wrong", [2, 255])
def test_a_boolean_above_one_is_refused(wrong: int) -> None:
    message = refused_input(2, bytes([1, wrong]), model=of("BOOL", 2), datatype="BOOL")

    assert message == "input 'x': BOOL is one byte each, 0 or 1"


def test_binary_data_output_is_for_requests_that_list_no_outputs() -> None:
    parameters = {"binary_data_output": True}
    listed = [{"name": "y"}, {"name": "z", "parameters": {"binary_data": True}}]
    model = NUMBERS.model_copy(
        update={"outputs": tuple(NUMBERS.outputs[0].model_copy(update={"name": n}) for n in "yz")}
    )
    head = {"inputs": [item(data=[1, 2], parameters={})], "parameters": parameters}

    whole = parse_infer(json.dumps(head).encode(), model)
    some = parse_infer(json.dumps(head | {"outputs": listed}).encode(), model)

    assert whole.binary and not whole.outputs
    assert [(output.name, output.binary) for output in some.outputs] == [("y", False), ("z", True)]


# Raw requests.


def test_a_raw_request_is_one_row_and_wants_binary_outputs() -> None:
    body = parse_infer(b"\1\0\2\0", NUMBERS, 0)

    assert body.inputs == (Tensor("x", "INT16", (1, 2), b"\1\0\2\0"),)
    assert body.binary and not body.outputs


def test_a_raw_requests_open_dimension_is_what_its_bytes_make_it() -> None:
    body = parse_infer(bytes(24), of("INT16", -1, 3), 0)

    assert body.inputs[0].shape == (1, 4, 3)


def test_a_raw_request_without_a_batch_dimension_has_the_models_shape() -> None:
    assert parse_infer(bytes(4), of("INT16", 2, rows=0), 0).inputs[0].shape == (2,)
    assert parse_infer(bytes(4), of("INT16", -1, rows=0), 0).inputs[0].shape == (2,)


@pytest.mark.parametrize("dims", [(1,), (1, 1)])
def test_a_raw_request_of_bytes_is_one_element(dims: tuple[int, ...]) -> None:
    body = parse_infer(b"whatever", of("BYTES", *dims), 0)

    assert body.inputs[0].shape == (1, *dims)
    assert body.inputs[0].array().ravel().tolist() == [b"whatever"]


@pytest.mark.parametrize("dims", [(-1,), (2,), (1, -1), (-1, -1)])
@pytest.mark.parametrize("rows", [0, 8])
def test_a_raw_request_of_bytes_has_no_other_shape(dims: tuple[int, ...], rows: int) -> None:
    message = refused_raw(b"\3\0\0\0abc", of("BYTES", *dims, rows=rows))

    assert message.startswith(
        "For BYTE datatype raw input 'x', the model must have input shape [1]"
    )


def test_a_raw_request_of_no_bytes_is_one_empty_string() -> None:
    assert parse_infer(b"", of("BYTES", 1), 0).inputs[0].array().tolist() == [[b""]]


def test_raw_requests_that_do_not_fit_are_refused() -> None:
    assert "6 bytes of binary data" in refused_raw(bytes(6), NUMBERS)
    assert "0 bytes of binary data" in refused_raw(b"", NUMBERS)
    assert "no whole number" in refused_raw(bytes(7), of("INT16", -1, 3))
    assert "no whole number" in refused_raw(b"", of("INT16", -1))
    assert (
        "The shape of the raw input 'x' can not be deduced because there are more than one "
        "variable-sized dimension" in refused_raw(bytes(4), of("INT16", -1, -1))
    )
    assert "0 or 1" in refused_raw(b"\1\2", of("BOOL", 2))


def test_a_raw_request_for_several_inputs_is_refused() -> None:
    assert refused_raw(bytes(7), PAIRS) == (
        "Raw request must only have 1 input (found 1) to be deduced but got 2 inputs in 'pairs' "
        "model configuration"
    )


# Over the API, without a worker: what is accepted stays on the queue.

HALVES = of("FP16", 2).model_copy(update={"name": "halves"})
BRAINS = of("BF16", 2).model_copy(update={"name": "brains"})


@pytest.fixture
def api(settings: Settings) -> FlaskClient:
    register(settings, HALVES, BRAINS, NUMBERS)
    return create_app(settings).test_client()


@pytest.fixture
def redis(settings: Settings) -> Iterator[Redis]:
    with connect(settings.redis_url) as client:
        yield client


def posted(api: FlaskClient, model: str, head: Any, *chunks: bytes) -> Any:
    body, length = frame(head, *chunks)
    return api.post(f"/v2/models/{model}/infer", data=body, headers={HEADER: str(length)})


@pytest.mark.parametrize(("model", "datatype"), [("halves", "FP16"), ("brains", "BF16")])
@pytest.mark.parametrize(
    "wanted",
    [
        {},
        {"parameters": {"binary_data_output": False}},
        {"outputs": [{"name": "y"}]},
        {
            "outputs": [{"name": "y", "parameters": {"binary_data": False}}],
            "parameters": {"binary_data_output": True},
        },
    ],
)
def test_half_precision_asked_for_as_json_is_refused_unqueued(
    api: FlaskClient, redis: Redis, settings: Settings, model: str, datatype: str, wanted: Any
) -> None:
    head = {"inputs": [item(datatype=datatype)]} | wanted

    message = refusal(posted(api, model, head, bytes(4)))

    assert message == (
        f"output 'y' has datatype {datatype}, which JSON cannot carry: ask for binary data"
    )
    assert not list(redis.scan_iter(match=f"{settings.key_prefix}:{{{model}/1}}:*"))


def test_a_clients_parameters_reach_the_workers_side(
    api: FlaskClient, redis: Redis, settings: Settings
) -> None:
    ours = {"timeout": 10_000_000, "priority": 1, "binary_data_output": True}
    theirs = {"temperature": 0.5, "name": "é", "deep": True, "count": 2**64 - 1}
    work = WorkQueue(
        open_wire(redis), QueueKeys(settings.key_prefix, "m/1"), "i", result_ttl_seconds=5.0
    )
    result = InferResult((Tensor("y", "INT16", (1, 2), b"\3\0\4\0"),))

    with ThreadPoolExecutor(1) as pool:
        head = {"inputs": [item()], "parameters": ours | theirs}
        asked = pool.submit(posted, api, "m", head, b"\1\0\2\0")
        claimed: list[Claimed] = []
        wait_until(lambda: claimed.extend(work.claim(1, 0.0)) or claimed, 10, "it was pushed")
        request = claimed[0].request()
        work.publish(claimed, answered(claimed, [result.encode()]))
        response = asked.result()

    assert dict(request.parameters) == theirs
    assert request.inputs[0].array().tolist() == [[1, 2]]
    assert response.status_code == 200 and response.data.endswith(b"}\3\0\4\0")
