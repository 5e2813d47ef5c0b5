"""Messages are read as protobuf reads them, and what would cost too much is refused before that."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
from registered import spec
from tritonclient.grpc import service_pb2 as proto

from api.payloads.json_size import FEW_BYTES
from api.rpc import reading
from api.rpc.contents import FIELDS, typed_data
from api.rpc.reading import MOST_NAMES_BYTES, MOST_PIECES, read_infer, read_message
from api.rpc.requests import read_request
from shared.datatypes import NUMPY_TYPES, to_bytes
from shared.errors import BadRequest
from shared.model_spec import ModelSpec, TensorSpec

MANY = 30_000
"""Elements of a tensor that is taken out of its message."""
Request = proto.ModelInferRequest
Input = Request.InferInputTensor
NUMBERS = sorted(set(FIELDS) - {"BYTES"})


def model(datatype: str, *names: str, elements: int = MANY) -> ModelSpec:
    return spec(
        "m", *(TensorSpec(name=name, datatype=datatype, dims=(elements,)) for name in names)
    )


def values(datatype: str) -> Any:
    """Return numbers of all lengths, the type's least and largest among them."""
    wanted, random = NUMPY_TYPES[datatype], np.random.default_rng(0)
    if wanted.kind == "b":
        return random.integers(0, 2, MANY).astype(bool)
    some = random.integers(0, 256, MANY * wanted.itemsize, np.uint8).view(wanted)
    if wanted.kind == "f":
        return random.standard_normal(MANY).astype(wanted)
    some >>= random.integers(0, wanted.itemsize * 8, MANY).astype(wanted)
    some[:2] = np.iinfo(wanted).min, np.iinfo(wanted).max
    return some


def typed(array: Any, datatype: str, name: str = "x", elements: int = MANY) -> Input:
    contents = {FIELDS[datatype]: array.tolist()}
    return Input(name=name, datatype=datatype, shape=[1, elements], contents=contents)


def field(number: int, value: bytes) -> bytes:
    """Return a field as protobuf writes it."""
    size, written = len(value), b""
    while size > 127:
        written += bytes([size % 128 | 128])
        size //= 128
    return bytes([number << 3 | 2]) + written + bytes([size]) + value


# What is read.


@pytest.mark.parametrize("datatype", NUMBERS)
def test_large_packed_contents_are_what_protobuf_makes_of_them(datatype: str) -> None:
    array = values(datatype)
    data = Request(model_name="m", inputs=[typed(array, datatype)]).SerializeToString()

    read = read_infer(data)

    assert not read.message.inputs[0].contents.ListFields(), "protobuf has not parsed them"
    (tensor,) = read_request(read, model(datatype, "x")).inputs
    assert bytes(tensor.data) == to_bytes(array)


SHAPES = [[], [0], [0, 1], [1, 0], [1, 1], [2], [2, 2], [1, 4], [-1], [2**40, 2**40], [1] * 1100]


@pytest.mark.parametrize("datatype", sorted(NUMPY_TYPES))
@pytest.mark.parametrize("field_name", sorted({*FIELDS.values()}))
def test_large_messages_have_the_contents_of_small_ones(datatype: str, field_name: str) -> None:
    """Whether packed elements are read by protobuf or by us, whether or not they fit."""
    number = proto.InferTensorContents.DESCRIPTOR.fields_by_name[field_name].number
    given = {
        "empty": field(number, b""),
        "twice empty": field(number, b"") * 2,
        "none": b"",
        "some": field(number, bytes(8)),
        "beyond": field(number, b"\xff" * 4 + b"\x0f" + b"\x01" * 3),
        "cut": field(number, b"\x01" * 6 + b"\x80"),
        "and another": field(number, b"") + field(8, b""),
    }
    for shape in SHAPES:
        head = Input(name="x", datatype=datatype, shape=shape).SerializeToString()
        for name, contents in given.items():
            data = field(1, b"m") + field(5, head + field(5, contents))
            small, large = (_contents(each) for each in (data, data + field(3, b"i" * FEW_BYTES)))
            assert small == large, (shape, name)


def _contents(data: bytes) -> bytes | None:
    """Return the only input's elements as raw data, None when the request is refused."""
    try:
        read = read_infer(data)
        packed = read.packed.get(0, {})
        return bytes(typed_data(read.message.inputs[0], "input x", packed, 100))
    except BadRequest:
        return None


def test_each_of_several_inputs_has_its_own_and_the_rest_is_as_it_was() -> None:
    first, second = values("INT64"), values("INT64")[::-1]
    asked = Request(
        model_name="m", id="7", inputs=[typed(first, "INT64", "a"), typed(second, "INT64", "b")],
        outputs=[{"name": "out"}], parameters={"priority": proto.InferParameter(int64_param=2)},
    )  # fmt: skip

    read = read_infer(asked.SerializeToString())
    body = read_request(read, model("INT64", "a", "b"))

    assert [bytes(each.data) for each in body.inputs] == [first.tobytes(), second.tobytes()]
    for each in asked.inputs:
        each.contents.Clear()
    assert read.message == asked


def test_raw_contents_stay_in_the_bytes_that_came() -> None:
    array = np.arange(MANY, dtype=np.float32)
    asked = Request(
        model_name="m", inputs=[Input(name="x", datatype="FP32", shape=[1, MANY])],
        raw_input_contents=[array.tobytes()],
    )  # fmt: skip

    data = asked.SerializeToString()
    read = read_infer(data)

    assert not read.message.raw_input_contents
    (tensor,) = read_request(read, model("FP32", "x")).inputs
    assert isinstance(tensor.data, memoryview)
    assert tensor.data.obj is data
    assert tensor.data == array.tobytes()


def test_contents_in_pieces_are_one_tensor() -> None:
    """As a client may write that streams its numbers; protobuf joins them."""
    head = field(1, b"x") + field(2, b"INT32") + field(3, b"\x01\xb0\xea\x01")
    pieces = field(5, field(2, b"\x05" * 10_000)) + field(5, field(2, b"\x06" * 20_000))
    data = field(1, b"m") + field(5, head + pieces)

    (tensor,) = read_request(read_infer(data), model("INT32", "x")).inputs

    assert np.frombuffer(tensor.data, np.int32).tolist() == [5] * 10_000 + [6] * 20_000


def test_large_texts_and_elements_that_are_not_packed_are_read_by_protobuf() -> None:
    texts = [b"text %d" % number for number in range(5000)]
    asked = Request(model_name="m", inputs=[typed(np.array(texts), "BYTES", elements=5000)])

    (tensor,) = read_request(
        read_infer(asked.SerializeToString()), model("BYTES", "x", elements=5000)
    ).inputs

    assert bytes(tensor.data) == to_bytes(np.array(texts, object))


# What is refused.


@pytest.mark.parametrize(
    "contents",
    [
        field(3, b"\x80" * MANY),
        field(3, b"\x01" * MANY + b"\x80" * 11),
        field(3, (b"\x80" * 10 + b"\x01") * MANY),
        field(3, b"\x01" * (MANY - 1)),
        field(6, bytes(4 * MANY)),
        field(3, b"\x01" * MANY) + b"\x18\x01",
    ],
)
def test_packed_contents_that_do_not_fit_are_refused(contents: bytes) -> None:
    head = field(1, b"x") + field(2, b"INT64") + field(3, b"\x01\xb0\xea\x01")
    data = field(1, b"m") + field(5, head + field(5, contents))

    with pytest.raises(BadRequest):
        read_request(read_infer(data), model("INT64", "x"))


def test_more_packed_numbers_than_the_model_takes_are_not_unpacked() -> None:
    data = field(1, b"m") + field(
        5,
        field(1, b"x") + field(2, b"INT64") + field(3, b"\x01\xb0\xea\x01")
        + field(5, field(3, b"\x01" * MANY)),
    )  # fmt: skip

    with pytest.raises(BadRequest, match="the model's largest request has 3200"):
        read_request(read_infer(data), model("INT64", "x", elements=100))


BODIES = {
    "inputs": (Request, b"\x2a\0"),
    "outputs": (Request, b"\x32\0"),
    "parameters": (Request, b"\x22\0"),
    "raw contents": (Request, b"\x3a\0"),
    "unknown fields": (Request, b"\x78\1"),
    "a dimension each": (Request, field(5, field(3, b"\1" * 9_000_000))),
    "dimensions one by one": (Request, field(5, b"\x18\1" * 4_000_000)),
    "elements": (Request, field(5, field(5, b"\x42\0" * 4_000_000))),
    "numbers one by one": (Request, field(5, field(5, b"\x18\1" * 4_000_000))),
    "load": (proto.RepositoryModelLoadRequest, b"\x1a\0"),
    "log": (proto.LogSettingsRequest, b"\x0a\0"),
    "trace": (proto.TraceSettingRequest, b"\x0a\0"),
    "trace values": (proto.TraceSettingRequest, field(1, field(2, b"\x0a\0" * 4_000_000))),
    "groups": (Request, b"\x0b" * 2_000_000),
    "live": (proto.ServerLiveRequest, b"\x08\1"),
}
TEXTS = {
    "name": (Request, 1), "version": (Request, 2), "id": (Request, 3),
    "model": (proto.ModelMetadataRequest, 1), "ready": (proto.ModelReadyRequest, 1),
    "loaded": (proto.RepositoryModelLoadRequest, 2),
}  # fmt: skip


@pytest.mark.parametrize("body", BODIES)
def test_millions_of_pieces_are_refused_before_they_are_made(
    body: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, piece = BODIES[body]
    data = piece * (8_000_000 // len(piece) or 1)
    monkeypatch.setattr(reading, "_parsed", lambda *_: pytest.fail("protobuf was asked"))

    with pytest.raises(BadRequest):
        read_infer(data) if kind is Request else read_message(kind, data)


@pytest.mark.parametrize("body", TEXTS)
def test_millions_of_letters_are_refused_before_they_are_looked_at(body: str) -> None:
    kind, number = TEXTS[body]
    data = field(number, b"a" * (MOST_NAMES_BYTES + 1))

    with pytest.raises(BadRequest, match="bytes of names, ids and parameters"):
        read_infer(data) if kind is Request else read_message(kind, data)


@pytest.mark.parametrize("numbers", [(1,), (99,), (5, 1), (5, 4), (5, 99)])
def test_long_names_and_unknown_fields_are_refused_before_they_are_copied(
    numbers: tuple[int, ...],
) -> None:
    data = b"a" * (4 * MOST_NAMES_BYTES)
    for number in reversed(numbers):
        data = field(number, data) if number < 16 else b"\x9a\x06" + field(1, data)[1:]
    tracemalloc.start()
    try:
        with pytest.raises(BadRequest, match="bytes of names, ids and parameters"):
            read_infer(data)
        assert tracemalloc.get_traced_memory()[1] < MOST_NAMES_BYTES // 4
    finally:
        tracemalloc.stop()


def test_as_much_as_may_be_is_read() -> None:
    assert len(read_infer(b"\x32\0" * MOST_PIECES).message.outputs) == MOST_PIECES
    text = read_message(proto.ModelReadyRequest, field(1, b"a" * (MOST_NAMES_BYTES - 100))).name
    assert len(text) == MOST_NAMES_BYTES - 100


@pytest.mark.parametrize("data", [b"\xff\xff\xff", b"\x0a\x05abc", field(1, b"\xff\xfe")])
@pytest.mark.parametrize("more", [b"", field(15, bytes(FEW_BYTES))])
def test_what_is_no_message_is_refused_small_and_large(data: bytes, more: bytes) -> None:
    with pytest.raises(BadRequest):
        read_infer(more + data)


def test_small_and_large_messages_of_random_bytes_are_never_read_differently() -> None:
    random = np.random.default_rng(1)
    large = field(15, bytes(FEW_BYTES))
    for _ in range(3000):
        data = random.integers(0, 60, random.integers(0, 40), np.uint8).tobytes()
        outcomes = []
        for each in (data, large + data):
            try:
                read = read_infer(each)
            except BadRequest:
                outcomes.append(None)
                continue
            read.message.DiscardUnknownFields()
            outcomes.append((read.message, [*map(bytes, read.raw)], bool(read.packed)))
        small, big = outcomes
        if big is None or big[2]:  # groups, or contents that were taken out
            continue
        assert small is not None
        small[0].raw_input_contents.clear()
        assert (small[0], small[1]) == (big[0], big[1])
