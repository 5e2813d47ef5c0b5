"""What crosses Redis comes out as it went in; anything else is BadMessage, never another error."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some
from hypothesis.extra import numpy as some_numpy

from shared.datatypes import DATATYPES, NUMPY_TYPES, Array, datatype_of, from_bytes, to_bytes
from shared.errors import BadMessage, all_errors
from shared.messages import LARGE_BYTES, InferRequest, InferResult, Tensor, Timings

NUMERIC = sorted(DATATYPES - {"BYTES"})
SHAPES = some_numpy.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
PLAIN = some.recursive(
    some.none() | some.booleans() | some.integers(-(2**63), 2**64 - 1) | some.text(max_size=5)
    | some.binary(max_size=9) | some.floats(),
    lambda inner: some.lists(inner, max_size=6) | some.dictionaries(some.text(max_size=2), inner),
    max_leaves=12,
)  # fmt: skip

SMALL = (
    some.none() | some.booleans() | some.integers(-2, 2**64 - 1) | some.text(max_size=5)
    | some.binary(max_size=9) | some.floats() | some.lists(some.integers(-2, 9), max_size=3)
    | some.lists(some.text(max_size=2), max_size=2) | some.sampled_from(sorted(DATATYPES))
    | some.dictionaries(some.text(max_size=2), some.none(), max_size=2)
)  # fmt: skip


@some.composite
def arrays(draw: some.DrawFn) -> Array:
    datatype = draw(some.sampled_from(sorted(DATATYPES)))
    shape = draw(SHAPES)
    if datatype == "BYTES":
        return draw(some_numpy.arrays(object, shape, elements=some.binary(max_size=8)))
    if datatype == "BF16":  # hypothesis does not know it, but any 16 bits are one
        return draw(some_numpy.arrays(np.uint16, shape)).view(NUMPY_TYPES[datatype])
    return draw(some_numpy.arrays(NUMPY_TYPES[datatype], shape))


@some.composite
def named_tensors(draw: some.DrawFn) -> Tensor:
    return Tensor.of(draw(some.text(max_size=9)), draw(arrays()), pixels=draw(some.booleans()))


some_tensors = some.lists(named_tensors(), max_size=3).map(tuple)
some_seconds = some.floats(0, 1e6)
some_timings = some.builds(
    Timings, some_seconds, some_seconds, some_seconds, some.integers(0, 4096), some.integers(1, 3),
    some.text(max_size=9),
)  # fmt: skip


# Arrays and bytes.


@given(arrays())
def test_an_array_survives_the_way_through_bytes(array: Array) -> None:
    back = from_bytes(to_bytes(array), datatype_of(array), array.shape)

    assert back.dtype == array.dtype and back.shape == array.shape
    assert back.tobytes() == array.tobytes() or back.tolist() == array.tolist()


@given(arrays())
def test_a_decoded_numeric_array_cannot_be_written_to(array: Array) -> None:
    back = from_bytes(to_bytes(array), datatype_of(array), array.shape)

    assert back.dtype == object or not back.flags.writeable


def test_known_bytes_are_little_endian_and_row_major() -> None:
    assert to_bytes(np.array([[1, 2], [3, 256]], "<i2")) == b"\1\0\2\0\3\0\0\1"
    assert to_bytes(np.array([[1, 2], [3, 256]], ">i2")) == b"\1\0\2\0\3\0\0\1"
    assert to_bytes(np.array([[1, 2], [3, 4]], np.uint8).T) == b"\1\3\2\4"
    assert to_bytes(np.array([True, False])) == b"\1\0"
    assert to_bytes(np.array(["é", b"ab"], object)) == b"\2\0\0\0\xc3\xa9\2\0\0\0ab"


@pytest.mark.parametrize("datatype", NUMERIC)
def test_every_datatype_has_its_own_name_again(datatype: str) -> None:
    array = np.zeros((2, 3), NUMPY_TYPES[datatype])

    assert datatype_of(array) == datatype
    assert datatype_of(array.astype(array.dtype.newbyteorder(">"))) == datatype


def test_a_dtype_the_protocol_does_not_have_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        datatype_of(np.zeros(2, np.complex64))


@pytest.mark.parametrize(
    ("data", "datatype", "shape"),
    [
        (b"12345", "FP32", (1,)),
        (b"1234", "FP32", (2,)),
        (b"1234", "FP32", (-1,)),
        (b"1234", "FP32", (2**70,)),
        (b"1234", "NOPE", (1,)),
        (b"1234", ["FP32"], (1,)),
        (b"1234", "FP32", ("x",)),
        (b"1234", "FP32", (1.0,)),
        (1234, "FP32", (1,)),
        (None, "FP32", (1,)),
        ("1234", "FP32", (1,)),
        (b"\5\0\0\0abc", "BYTES", (1,)),
        (b"\1\0\0", "BYTES", (1,)),
        (b"\1\0\0\0a", "BYTES", (2,)),
    ],
)
def test_bytes_that_do_not_fit_are_a_bad_message(data: Any, datatype: Any, shape: Any) -> None:
    with pytest.raises(BadMessage):
        from_bytes(data, datatype, shape)


# Messages.


@given(some_tensors, some.lists(some.text(max_size=9), max_size=3).map(tuple))
def test_a_request_survives_the_way_through_redis(
    inputs: tuple[Tensor, ...], outputs: tuple[str, ...]
) -> None:
    request = InferRequest("id-1", 3, inputs, outputs)

    assert InferRequest.decode("id-1", 3, request.encode()) == request


@given(some_tensors, some_timings)
def test_a_result_survives_the_way_through_redis(
    outputs: tuple[Tensor, ...], timings: Timings
) -> None:
    result = InferResult(outputs, timings)

    assert InferResult.decode(result.encode()) == result


@given(some.sampled_from(all_errors()), some.text(max_size=30), some_timings)
def test_an_error_crosses_redis_as_itself(kind: Any, message: str, timings: Timings) -> None:
    back = InferResult.decode(InferResult(timings=timings, error=kind(message)).encode())

    assert type(back.error) is kind
    assert back.error is not None and back.error.message == message
    assert back.timings == timings


def test_a_tensor_of_a_memoryview_is_sent_as_its_bytes() -> None:
    tensor = Tensor("x", "UINT8", (3,), memoryview(b"abc"))

    back = InferRequest.decode("id", 1, InferRequest("id", 1, (tensor,)).encode())

    assert back.inputs[0].array().tolist() == list(b"abc")


@pytest.mark.parametrize("size", [3, LARGE_BYTES], ids=["small", "large"])
@pytest.mark.parametrize(
    "later",
    [(), (0.5,), (0.0, "key-1"), (0.0, "", "order-7"), (0.5, "key-1", "order-7", "00-1-2-01")],
)
def test_the_later_parts_of_a_request_survive_each_without_the_others(
    size: int, later: tuple[Any, ...]
) -> None:
    tensor = Tensor("x", "UINT8", (size,), bytes(size))
    names = ("queue_timeout_seconds", "owner", "known_as", "traceparent")
    request = InferRequest("id", 1, (tensor,), **dict(zip(names, later, strict=False)))

    assert InferRequest.decode("id", 1, b"".join(_buffers(request))) == request


@pytest.mark.parametrize("count", range(5))
def test_a_request_of_an_earlier_release_lacks_the_later_parts(count: int) -> None:
    later = [0.5, "key-1", "order-7", "00-1-2-01"][:count]

    back = InferRequest.decode("id", 1, msgpack.packb([["y"], [], {"a": 1}, *later]))

    read = [back.queue_timeout_seconds, back.owner, back.known_as, back.traceparent]
    assert read == [*later, *[0.0, "", "", ""][count:]]


def _buffers(request: InferRequest) -> tuple[Any, ...]:
    encoded = request.encode_large()
    return (encoded,) if isinstance(encoded, bytes) else encoded


# Garbage.


def decoded_or_bad(body: bytes) -> None:
    """Decode as both messages and read every tensor by its name; only BadMessage may come of it."""
    for decode in (_inputs, _outputs):
        with suppress(BadMessage):
            arrays = {tensor.name: tensor.array() for tensor in decode(body)}
            assert all(array.size >= 0 for array in arrays.values())


def _inputs(body: bytes) -> tuple[Tensor, ...]:
    return InferRequest.decode("id", 1, body).inputs


def _outputs(body: bytes) -> tuple[Tensor, ...]:
    return InferResult.decode(body).outputs


@given(some.binary(max_size=200))
def test_random_bytes_are_a_bad_message(body: bytes) -> None:
    decoded_or_bad(body)


@given(PLAIN)
def test_other_msgpack_is_a_bad_message(value: Any) -> None:
    decoded_or_bad(msgpack.packb(value))


@given(some.lists(SMALL, min_size=5, max_size=5))
def test_a_tensor_of_wrong_parts_is_a_bad_message(fields: list[Any]) -> None:
    decoded_or_bad(msgpack.packb([[], [fields]]))
    decoded_or_bad(msgpack.packb([[fields], [0.0, 0.0, 0.0, 1, 1, "i"], None]))


@given(some.integers(0, 4), SMALL)
def test_a_tensor_of_one_wrong_part_is_a_bad_message(place: int, wrong: Any) -> None:
    fields: list[Any] = ["x", "FP32", [1], b"1234", False]
    fields[place] = wrong

    decoded_or_bad(msgpack.packb([[], [fields]]))


@given(some_tensors, some.data())
def test_a_message_cut_short_or_damaged_is_a_bad_message(
    inputs: tuple[Tensor, ...], data: some.DataObject
) -> None:
    whole = bytearray(InferRequest("id", 1, inputs).encode())
    where = data.draw(some.integers(0, len(whole) - 1))

    with pytest.raises(BadMessage):
        InferRequest.decode("id", 1, bytes(whole[:where]))
    whole[where] = data.draw(some.integers(0, 255))
    decoded_or_bad(bytes(whole))


@pytest.mark.parametrize("body", [b"", b"\x80", b"\x90", b"\xc0", b"\xc1", b"\x91" * 2000])
def test_known_garbage_is_a_bad_message(body: bytes) -> None:
    with pytest.raises(BadMessage):
        InferRequest.decode("id", 1, body)
    with pytest.raises(BadMessage):
        InferResult.decode(body)
