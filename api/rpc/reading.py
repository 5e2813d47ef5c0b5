"""Messages, read from the bytes that came; what they would cost is counted before that.

Parsed, a message takes up to a hundred times its own size, and protobuf lets no other thread run
meanwhile: two bytes are an input. Large tensors stay where they are, in the bytes that came.
Source: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2 as proto

from api.payloads.json_size import FEW_BYTES
from shared.errors import BadRequest
from shared.messages import Buffer

MOST_PIECES = 100_000
"""Fields and packed numbers of a message besides its tensors' elements."""
MOST_NAMES_BYTES = 4 * 2**20
"""Names, ids and parameters of a message together."""
PAUSE_PIECES, GIVE_WAY_SECONDS = 1000, 50e-6
"""After so many others have their turn: a thread that counts would give way every 5 ms."""
VARINT, FIXED64, DELIMITED, FIXED32 = 0, 1, 2, 5
FIXED_SIZES = {FIXED64: 8, FIXED32: 4}
LONGEST_VARINT = 10
GOES_ON = 0x80
"""The bit of a number's byte that says that another follows."""
STRING, NUMBERS = "text", "numbers"
"""What stands in a delimited field, if not a message; of bytes nothing is made."""
Layout = Mapping[int, Any]
"""By a field's number STRING, NUMBERS, or a message's own layout."""
Request = proto.ModelInferRequest
Tensor = Request.InferInputTensor
Contents = proto.InferTensorContents
INPUTS, RAW = Request.INPUTS_FIELD_NUMBER, Request.RAW_INPUT_CONTENTS_FIELD_NUMBER
CONTENTS = Tensor.CONTENTS_FIELD_NUMBER
PACKED = {
    field.number: field.name
    for field in Contents.DESCRIPTOR.fields
    if field.type != FieldDescriptor.TYPE_BYTES
}
"""The typed contents that are numbers."""
Packed = Mapping[str, list[memoryview]]


class InferMessage(NamedTuple):
    """A ModelInferRequest without its large tensors, and these, in the bytes that came.

    `raw` are its raw contents, `packed` by an input's place its typed ones, as protobuf packs them;
    all of it was `size` bytes.
    """

    message: Any
    raw: Sequence[Buffer]
    packed: Mapping[int, Packed] = {}
    size: int = 0

    @classmethod
    def of(cls, message: Any) -> InferMessage:
        """Return a message that was parsed whole."""
        return cls(message, message.raw_input_contents)


def read_infer(data: bytes) -> InferMessage:
    """Return a ModelInferRequest; raises BadRequest."""
    if len(data) <= FEW_BYTES:
        return InferMessage.of(_parsed(Request, data))
    rest, raw, packed = _taken_apart(data)
    return InferMessage(read_message(Request, rest), raw, packed, len(data))


def read_message(kind: Any, data: bytes) -> Any:
    """Return a message of a kind; raises BadRequest for one that would cost too much, or is none.

    A message of bytes that another kind was made of may be read as well, as always with protobuf.
    """
    if len(data) > FEW_BYTES:
        _count(data, 0, len(data), _layout(kind.DESCRIPTOR), _Cost())
    return _parsed(kind, data)


def _parsed(kind: Any, data: bytes) -> Any:
    try:
        return kind.FromString(data)
    except DecodeError:
        raise BadRequest(f"the message is no {kind.DESCRIPTOR.name}") from None


class _Cost:
    """The pieces and the text of a message that were counted so far."""

    def __init__(self) -> None:
        self._pieces = self._text_bytes = 0
        self._turn = PAUSE_PIECES

    def add(self, pieces: int) -> None:
        """Count some; raises BadRequest."""
        self._pieces += pieces
        if self._pieces > MOST_PIECES:
            raise BadRequest(
                f"the message has more than {MOST_PIECES} fields and numbers, besides tensors that "
                "are raw_input_contents or packed"
            )
        if self._pieces >= self._turn:
            self._turn = self._pieces + PAUSE_PIECES
            time.sleep(GIVE_WAY_SECONDS)

    def add_text(self, size: int) -> None:
        """Count bytes of text; raises BadRequest."""
        self._text_bytes += size
        if self._text_bytes > MOST_NAMES_BYTES:
            raise BadRequest(
                f"the message has more than {MOST_NAMES_BYTES} bytes of names, ids and parameters"
            )


@cache
def _layout(descriptor: Descriptor) -> Layout:
    found: dict[int, Any] = {}
    for field in descriptor.fields:
        if field.message_type is not None:
            found[field.number] = _layout(field.message_type)
        elif field.type == FieldDescriptor.TYPE_STRING:
            found[field.number] = STRING
        elif field.type != FieldDescriptor.TYPE_BYTES:
            found[field.number] = NUMBERS
    return found


def _count(data: bytes, at: int, end: int, layout: Layout, cost: _Cost) -> None:
    """Count what a message in `data` would be parsed into; raises BadRequest."""
    for number, wire, _, start, stop in _fields(data, at, end, cost):
        inside = layout.get(number) if wire == DELIMITED else None
        if inside is STRING:
            cost.add_text(stop - start)
        elif inside is NUMBERS:
            cost.add(stop - start)  # each has a byte at least
        elif inside is not None:
            _count(data, start, stop, inside, cost)


def _fields(
    data: bytes, at: int, end: int, cost: _Cost
) -> Iterator[tuple[int, int, int, int, int]]:
    """Yield each field's number and wire type, and where it, its value and the next one begin.

    Raises BadRequest for bytes that are no message, groups among them, which nobody sends.
    """
    while at < end:
        begin, tag = at, data[at]
        at += 1
        if tag >= GOES_ON:
            tag, at = _varint(data, begin, end)
        wire = tag & 7
        if wire == DELIMITED:
            length, at = _varint(data, at, end)
            stop = at + length
        elif wire == VARINT:
            stop = _varint(data, at, end)[1]
        else:
            stop = at + FIXED_SIZES.get(wire, end)
        if stop > end:
            raise _broken()
        cost.add(1)
        yield tag >> 3, wire, begin, at, stop
        at = stop


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    """Return a number and where the next byte is; raises BadRequest."""
    if at < end and data[at] < GOES_ON:
        return data[at], at + 1  # fast: nearly all
    value = 0
    for place in range(min(LONGEST_VARINT, end - at)):
        byte = data[at + place]
        value |= (byte & ~GOES_ON) << 7 * place
        if byte < GOES_ON:
            return value, at + place + 1
    raise _broken()


def _broken() -> BadRequest:
    return BadRequest("the message is cut short, or no message of protobuf's")


def _taken_apart(data: bytes) -> tuple[bytes, list[Buffer], dict[int, Packed]]:
    """Return a ModelInferRequest's bytes without its tensors, its raw and its packed contents."""
    view, cost = memoryview(data), _Cost()
    rest: list[Buffer] = []
    raw: list[Buffer] = []
    packed: dict[int, Packed] = {}
    inputs = 0
    for number, wire, begin, start, stop in _fields(data, 0, len(data), cost):
        if wire == DELIMITED and number == RAW:
            raw.append(view[start:stop])
        elif wire == DELIMITED and number == INPUTS:
            small, packed[inputs] = _input(data, view, start, stop, cost)
            rest += _delimited(INPUTS, small)
            inputs += 1
        else:
            cost.add_text(stop - begin)  # fast: before it is copied
            rest.append(view[begin:stop])
    return b"".join(rest), raw, packed


def _input(
    data: bytes, view: memoryview, at: int, end: int, cost: _Cost
) -> tuple[list[Buffer], Packed]:
    """Return an input's bytes without its packed contents, and these by the name of their field."""
    rest: list[Buffer] = []
    packed: dict[str, list[memoryview]] = {}
    for number, wire, begin, start, stop in _fields(data, at, end, cost):
        if wire != DELIMITED or number != CONTENTS:
            cost.add_text(stop - begin)
            rest.append(view[begin:stop])
            continue
        kept: list[Buffer] = []
        for field, form, first, inside, last in _fields(data, start, stop, cost):
            if form == DELIMITED and field in PACKED:
                if inside < last:  # an empty one is none to protobuf
                    packed.setdefault(PACKED[field], []).append(view[inside:last])
            else:
                kept.append(view[first:last])
        rest += _delimited(CONTENTS, kept)
    return rest, packed


def _delimited(number: int, pieces: list[Buffer]) -> list[Buffer]:
    """Return a field that holds some pieces."""
    return [_as_varint(number << 3 | DELIMITED), _as_varint(sum(map(len, pieces))), *pieces]


def _as_varint(value: int) -> bytes:
    found = bytearray()
    while value >= GOES_ON:
        found.append(value % GOES_ON | GOES_ON)
        value >>= 7
    found.append(value)
    return bytes(found)
