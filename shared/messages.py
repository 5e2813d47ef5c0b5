"""The two messages that cross Redis: a request to the worker, a result back.

Both are msgpack with the tensors' raw bytes inside, or beside: a `BodyReference` and the places of
large ones in shared memory, or in a body store (`shared/bodies/`). Nothing in them can run code.
What the queue's scripts must read without decoding (rows, signature, times, attempts) is the
ticket's, see `ticket.py`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from hashlib import blake2b
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Self, TypeVar

import msgpack

from shared.datatypes import Array, datatype_of, from_bytes, to_bytes
from shared.errors import BadMessage, BodyLost, FerryError, by_code

Message = TypeVar("Message")
Parameters = Mapping[str, str | int | float | bool]
LARGE_BYTES = 64 * 1024
"""From here on a copy costs more than another system call."""
LEAST_BESIDE_BYTES = 1024
"""Of a tensor beside Redis: smaller ones of a large message stay in it."""
Buffer = bytes | memoryview
NO_PARAMETERS: Parameters = MappingProxyType({})
_PARTS = ("outputs", "inputs", "parameters")
"""The parts of every request; `_LATER` ones are left out from the end where they say nothing."""
_LATER = ("queue_timeout_seconds", "owner", "known_as", "traceparent", "whole")
_FROM_CACHE = struct.Struct("<Bd")
"""In front of an answer from the cache: a sign that no message begins with, the seconds waited."""
_CACHE_SIGN = b"\xc1"
BESIDE_REDIS = b"\xc0"
"""The first byte of a message whose large tensors lie beside Redis: no other begins with it."""
IN_MEMORY = bytes(4)
"""The place of what lies in shared memory."""
_PLACE = struct.Struct("<QQ")
_PLACE_CODE = 1
"""msgpack's type of an extension that stands for a tensor's data: first byte, count of bytes."""
ALIGNMENT_BYTES = 64
"""Where tensors begin beside Redis: what computes with them reads whole lines of the cache."""


class Buffers(tuple[Buffer, ...]):
    """Bytes that lie in several buffers, in this order."""

    __slots__ = ()


class Tensor(NamedTuple):
    """One named tensor: `data` is row-major little-endian, BYTES in the protocol's binary form.

    `pixels` marks a uint8 picture batch [rows, height, width, channels] that the worker still has
    to normalise into the model's own input; with BYTES [rows], files that it has to decode first.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Buffer
    pixels: bool = False

    @classmethod
    def of(cls, name: str, array: Array, *, pixels: bool = False) -> Tensor:
        """Make a tensor from an array of any supported dtype."""
        return cls(name, datatype_of(array), array.shape, to_bytes(array), pixels)

    def array(self) -> Array:
        """Return the tensor as a read-only array; raises BadMessage when data and shape differ."""
        return from_bytes(self.data, self.datatype, self.shape)


class BodyReference(NamedTuple):
    """The beginning of a message that has large tensors beside it: `size` bytes in one piece.

    They lie in shared memory, or in the body store whose id is `place`, under the request's id and
    the `nonce` of who wrote them.
    """

    nonce: bytes
    size: int
    place: bytes = IN_MEMORY

    @classmethod
    def of(cls, message: bytes) -> Self:
        """Read a message's; raises BadMessage."""
        try:
            _, place, nonce, size = _REFERENCE.unpack_from(message)
        except struct.error as error:
            raise BadMessage(f"not a message of this version: {error}") from error
        return cls(nonce, size, place)

    def name(self, request_id: str) -> str:
        """Return how what lies there is called, of a request or of its answer."""
        return f"{request_id}.{self.nonce.hex()}"

    def before(self, message: bytes) -> bytes:
        """Return a message whose tensors were `put_beside`."""
        return _REFERENCE.pack(BESIDE_REDIS, self.place, self.nonce, self.size) + message


_REFERENCE = struct.Struct("<c4s4sQ")


def lies_in_memory(message: bytes) -> bool:
    """Tell of a message with tensors beside it whether these lie in shared memory."""
    return message[1 : 1 + len(IN_MEMORY)] == IN_MEMORY


class LaidBeside(NamedTuple):
    """What is to be written beside Redis, `size` bytes, and the tensors without it."""

    tensors: tuple[Tensor, ...]
    buffers: list[Buffer]
    size: int


def put_beside(tensors: Sequence[Tensor]) -> LaidBeside:
    """Take the data out of large tensors; the rest is a message's, behind a BodyReference."""
    left, buffers, size = [], list[Buffer](), 0
    for tensor in tensors:
        count, padding = len(tensor.data), -size % ALIGNMENT_BYTES
        if count < LEAST_BESIDE_BYTES:
            left.append(tensor)
            continue
        if padding:
            buffers.append(bytes(padding))
        buffers.append(tensor.data)
        place: Any = msgpack.ExtType(_PLACE_CODE, _PLACE.pack(size + padding, count))
        left.append(tensor._replace(data=place))
        size += padding + count
    return LaidBeside(tuple(left), buffers, size)


class InferRequest(NamedTuple):
    """One client's request: every input has `rows` rows (1 for models without a batch dimension).

    `outputs` names the wanted outputs, empty for all. `signature` is 8 bytes that are equal for
    requests that can share a batch (`ModelSpec.signature` makes it). `parameters` are the client's,
    for the model to read. `queue_timeout_seconds` is how long the client would have it wait on the
    queue, 0 when it did not say; its level's queue policy decides what that means, or those of the
    steps of an ensemble. One that is not
    `named` wants no special version: it is refused where such requests go to another one by now.
    `owner` is the id of the client's API key, empty without keys.
    In log lines it is `known_as` what its client called it, or what the edge did. One that is
    traced has the `traceparent` of its first span, see shared/tracing. Once something of it was
    lost beside Redis it is `whole`, and so is its answer.
    """

    id: str
    rows: int
    inputs: tuple[Tensor, ...]
    outputs: tuple[str, ...] = ()
    timeout_seconds: float = 30.0
    signature: bytes = bytes(8)
    priority: int = 1
    parameters: Parameters = NO_PARAMETERS
    queue_timeout_seconds: float = 0.0
    named: bool = False
    owner: str = ""
    known_as: str = ""
    traceparent: str = ""
    whole: bool = False

    def encode(self) -> bytes:
        """Encode inputs and wanted outputs; id, rows and other times travel in the ticket."""
        rest: list[object] = [
            self.queue_timeout_seconds, self.owner, self.known_as, self.traceparent, self.whole,
        ]  # fmt: skip
        while rest and not rest[-1]:
            rest.pop()
        return _pack([self.outputs, self.inputs, dict(self.parameters), *rest])

    def encode_large(self) -> bytes | Buffers:
        """Encode the same; fast: large tensors are buffers by themselves, not copied."""
        if sum(len(tensor.data) for tensor in self.inputs) < LARGE_BYTES:
            return self.encode()
        packer = msgpack.Packer(autoreset=False)
        buffers: list[Buffer] = []
        packer.pack_array_header(len(_PARTS) + len(_LATER))
        packer.pack(self.outputs)
        packer.pack_array_header(len(self.inputs))
        for name, datatype, shape, data, pixels in self.inputs:
            packer.pack_array_header(5)
            for item in (name, datatype, shape):
                packer.pack(item)
            # msgpack's "bin 32": what follows is so many bytes.
            buffers += [packer.bytes() + b"\xc6" + len(data).to_bytes(4, "big"), data]
            packer.reset()
            packer.pack(pixels)
        packer.pack(dict(self.parameters))
        packer.pack(self.queue_timeout_seconds)
        packer.pack(self.owner)
        packer.pack(self.known_as)
        packer.pack(self.traceparent)
        packer.pack(self.whole)
        return Buffers([*buffers, packer.bytes()])

    def digest(self) -> str:
        """Return 32 hex digits that are equal for requests of the same answer and owner."""
        head = [(name, kind, shape, len(data), px) for name, kind, shape, data, px in self.inputs]
        asked = [self.outputs, head, sorted(self.parameters.items())]
        asked += [self.owner] if self.owner else []
        found = blake2b(_pack(asked), digest_size=16)
        for tensor in self.inputs:
            found.update(tensor.data)
        return found.hexdigest()

    @classmethod
    def decode(
        cls, request_id: str, rows: int, body: bytes, beside: memoryview | None = None
    ) -> InferRequest:
        """Rebuild a request from its ticket's id and rows and its body; raises BadMessage.

        Large tensors are parts of what lies `beside` it; raises BodyLost where that is None.
        """
        return _decoding(
            body,
            beside,
            lambda parts: cls(
                request_id,
                rows,
                tuple(_tensor(item) for item in parts[1]),
                tuple(parts[0]),
                parameters=parts[2],
                **dict(zip(_LATER, parts[len(_PARTS) :], strict=False)),
            ),
        )


class Timings(NamedTuple):
    """The costs of one answer in seconds, and the instance that made it.

    `queue_seconds` runs from push to claim, `batch_wait_seconds` from claim to the start of the
    forward pass (decoding, stacking, padding), `compute_seconds` is the forward pass itself.
    A `cached` answer was made for another request that asked the same, by `instance`.
    """

    queue_seconds: float = 0.0
    batch_wait_seconds: float = 0.0
    compute_seconds: float = 0.0
    batch_size: int = 0
    attempts: int = 1
    instance: str = ""
    cached: bool = False


class InferResult(NamedTuple):
    """The answer to one request: outputs, or an error, and its costs."""

    outputs: tuple[Tensor, ...] = ()
    timings: Timings = Timings()
    error: FerryError | None = None

    def encode(self) -> bytes:
        """Encode for the request's result key."""
        return _pack(
            [self.outputs, self.timings, self.error and [self.error.code, self.error.message]]
        )

    @classmethod
    def decode(cls, body: bytes, beside: memoryview | None = None) -> InferResult:
        """Rebuild a result; raises BadMessage. One from the cache costs its request's wait.

        Large tensors are parts of what lies `beside` it, as in `InferRequest.decode`.
        """
        if body[:1] == _CACHE_SIGN and len(body) > _FROM_CACHE.size:
            waited = _FROM_CACHE.unpack_from(body)[1]
            made = cls.decode(body[_FROM_CACHE.size :])
            timings = Timings(
                waited, attempts=made.timings.attempts, instance=made.timings.instance, cached=True
            )
            return made._replace(timings=timings)
        return _decoding(
            body,
            beside,
            lambda parts: cls(
                tuple(_tensor(item) for item in parts[0]),
                Timings(*parts[1]),
                by_code(*parts[2]) if parts[2] else None,
            ),
        )


class RequestedOutput(NamedTuple):
    """One output as the client asks for it: binary, or as its `class_count` best classes."""

    name: str
    binary: bool = False
    class_count: int = 0


class AnswerForm(NamedTuple):
    """The form of an answer in the API; kept as JSON with a request that is answered later.

    `infer` answers v2 tensors under the client's `id`: the `outputs`, or all of them, `binary` or
    not. `rows` describes each row by its `top_k` classes, a single one by itself when `one`; `cut`
    tells whose text was truncated. `tensor` answers the first output's numbers. `predictions` and
    `outputs` are version 1's rows and columns.
    """

    kind: Literal["infer", "rows", "tensor", "predictions", "outputs"]
    id: str | None = None
    top_k: int = 0
    one: bool = False
    cut: tuple[bool, ...] = ()
    outputs: tuple[RequestedOutput, ...] = ()
    binary: bool = False


def _tensor(fields: list[Any]) -> Tensor:
    name, datatype, shape, data, pixels = fields
    if not isinstance(name, str):
        raise TypeError("a tensor's name must be a string")
    return Tensor(name, datatype, tuple(shape), data, pixels)


def _pack(parts: list[Any]) -> bytes:
    packed: bytes = msgpack.packb(parts)
    return packed


def _decoding(body: bytes, beside: memoryview | None, build: Callable[[Any], Message]) -> Message:
    try:
        if body[:1] == BESIDE_REDIS:
            return build(_unpacked_with(beside, body))
        return build(msgpack.unpackb(body))
    except (ValueError, TypeError, KeyError, IndexError, msgpack.UnpackException) as error:
        raise BadMessage(f"not a message of this version: {error}") from error


def _unpacked_with(beside: memoryview | None, body: bytes) -> Any:
    if beside is None:
        raise BodyLost.default()
    rest = memoryview(body)[_REFERENCE.size :]
    return msgpack.unpackb(rest, ext_hook=partial(_part_of, beside))


def _part_of(beside: memoryview, code: int, place: bytes) -> memoryview:
    """Return a tensor's data; too few, where it ends early, fit no shape."""
    if code != _PLACE_CODE:
        raise ValueError(f"an extension of type {code}")
    first, count = _PLACE.unpack(place)
    return beside[first : first + count]
