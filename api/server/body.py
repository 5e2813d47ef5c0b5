"""Reads a request's body, the whole of it or none; a large one into one buffer."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from io import BytesIO
from typing import IO, TYPE_CHECKING, Any, TypeVar

import numpy as np
from flask import Request, request
from gunicorn.http.body import Body, LengthReader
from gunicorn.http.unreader import SocketUnreader
from werkzeug.datastructures import FileStorage, MultiDict

from api.access.guard import KEY
from api.payloads.binary_tensors import HEADER_VARIABLE
from api.server.compression import decompress
from api.server.pace import Pace
from shared.bodies.turns import let_others
from shared.errors import BadRequest, PayloadTooLarge, RequestTimeout
from shared.messages import LARGE_BYTES, Buffer

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

BODY_STOPPED = "nothing more of the body came in time: the connection is closed"
HELD_BODY = "ferry.held_body"
"""The request's HeldBody in WSGI's environment."""
MAX_ORDER_BYTES = 256 * 1024
"""Of the JSON by which models are loaded, and settings are set."""
PIECE_BYTES = 2**20
CHUNKED_READ_BYTES, FEWEST_READ_BYTES = 8192, 64
"""Of a chunked body at a time: gunicorn reads them in Python, and they may be of one byte."""
LONGEST_READ_SECONDS = 0.001
"""What took longer is read in smaller parts: others wait meanwhile."""
Read = TypeVar("Read", bytes, bytes | memoryview)


class BoundedReads:
    """WSGI middleware: what is read from gunicorn's socket keeps the pace of bodies.

    A large answer is written in pieces, each under the connection's time-out. Offers of another
    protocol are ignored.
    """

    def __init__(self, next_app: WSGIApplication, pace: Pace) -> None:
        """Have the bodies for `next_app` keep `pace`."""
        self._next_app = next_app
        self._pace = pace

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        # subtle: werkzeug would look for a websocket's route (RFC 9110, 7.8: it may be ignored).
        environ.pop("HTTP_UPGRADE", None)
        client = environ.get("gunicorn.socket")
        if client is None:
            return self._next_app(environ, start_response)
        with self._pace.reading(environ["wsgi.input"], client, environ) as held:
            environ[HELD_BODY] = held
            return _pieces(self._next_app(environ, start_response))


def _pieces(answer: Iterable[bytes]) -> Iterator[bytes]:
    """Cut an answer into pieces, for each of which its client has a connection's time-out."""
    try:
        for part in answer:
            view = memoryview(part)
            for start in range(0, len(part), PIECE_BYTES):
                yield part if len(part) <= PIECE_BYTES else bytes(view[start : start + PIECE_BYTES])
    finally:
        close = getattr(answer, "close", None)
        if close is not None:
            close()


class InMemoryRequest(Request):
    """Flask's request, whose uploaded files stay in memory, as all other bodies do.

    Flask's own writes those above 500 KB to TMPDIR, which may be read-only, and reads them back.
    """

    def _get_file_stream(self, *_: Any, **__: Any) -> IO[bytes]:
        return BytesIO()


def read_body(most_bytes: int | None = None) -> bytes:
    """Return the body, opened if it came with a Content-Encoding; raises what `decompress` does.

    Raises PayloadTooLarge above the limit, or `most_bytes`: before reading when the length is
    declared.
    A declared length is read in one piece, a tenth of what a request costs less than by werkzeug's
    stream classes (2026-11-21).
    """
    return bytes(read_any(most_bytes))  # bytes of bytes is no copy


def read_any(most_bytes: int | None = None) -> Buffer:
    """Read as `read_body`, a large body into one buffer."""
    limit = request.max_content_length
    assert limit is not None, "create_app sets it"
    limit = min(limit, most_bytes or limit)
    length, encoding = request.content_length, request.environ.get("HTTP_CONTENT_ENCODING")
    if length is None:
        raw: Buffer = _read_chunked(limit)
    else:
        raw = read_binary(request.environ["wsgi.input"], length, limit)
    return raw if encoding is None else _opened(bytes(raw), encoding, limit)


def _opened(raw: bytes, encoding: str, limit: int) -> bytes:
    opened = decompress(raw, encoding, limit)
    if (held := request.environ.get(HELD_BODY)) is not None:
        held.add(len(opened), request.environ.get(KEY))
    return opened


def read_tensors(max_json_bytes: int) -> Buffer:
    """Read as `read_any`, no more than `max_json_bytes` where all of it is JSON."""
    return read_any(None if HEADER_VARIABLE in request.environ else max_json_bytes)


def read_form() -> tuple[MultiDict[str, str], MultiDict[str, FileStorage]]:
    """Return the fields and files of a form, opened if it came with a Content-Encoding."""
    if "HTTP_CONTENT_ENCODING" not in request.environ:
        return request.form, request.files
    raw = read_body()
    parser = request.make_form_data_parser()
    found = parser.parse(BytesIO(raw), request.mimetype, len(raw), request.mimetype_params)
    return found[1], found[2]


def read_binary(stream: IO[bytes], length: int, limit: int) -> Buffer:
    """Read `length` bytes, many of them into one buffer.

    Raises PayloadTooLarge above `limit`, BadRequest when there are less, RequestTimeout when they
    stop to come.
    """
    check_length(length, limit)
    if length < LARGE_BYTES:
        return _complete(_read(stream, length), length)
    try:
        body: Buffer | None = _read_into_one(stream, length)
    except TimeoutError as error:
        raise RequestTimeout(BODY_STOPPED) from error
    return _complete(_read(stream, length) if body is None else body, length)


def check_length(length: int, limit: int) -> None:
    """Raise PayloadTooLarge for a body above the limit."""
    if length > limit:
        raise PayloadTooLarge(f"the body is {length} bytes, at most {limit} bytes are taken")


def _read(stream: IO[bytes], length: int) -> bytes:
    try:
        return stream.read(length)
    except TimeoutError as error:
        raise RequestTimeout(BODY_STOPPED) from error
    except OSError as error:
        raise BadRequest("the client hung up before the body was there") from error


def _complete(raw: Read, length: int) -> Read:
    if len(raw) < length:
        raise BadRequest(f"the body ended after {len(raw)} of {length} bytes")
    return raw


def _read_chunked(limit: int) -> memoryview:
    """Read a body without a declared length, in turns with other requests."""
    whole, size, began = bytearray(), CHUNKED_READ_BYTES, time.perf_counter()
    while part := _read(request.environ["wsgi.input"], size):
        whole += part
        if len(whole) > limit:
            raise PayloadTooLarge(f"the body is larger than {limit} bytes")
        if time.perf_counter() - began > LONGEST_READ_SECONDS:
            size = max(FEWEST_READ_BYTES, size // 2)
        else:
            size = min(CHUNKED_READ_BYTES, 2 * size)
        let_others()
        began = time.perf_counter()
    return memoryview(whole)


def _read_into_one(stream: Any, length: int) -> memoryview | None:
    """Return a body of `length` bytes, shorter when the client left.

    fast: gunicorn's own `read` copies a body four times between its buffers. What it knows of the
    connection is brought up to date here, so that the next request is found where it begins.

    None, and nothing is read, when the body is small or another server than gunicorn has it.
    Raises TimeoutError when nothing more comes.
    """
    reader: Any = getattr(stream, "reader", None)
    if length < LARGE_BYTES or type(stream) is not Body or type(reader) is not LengthReader:
        return None
    unreader = reader.unreader
    if type(unreader) is not SocketUnreader or reader.length != length or stream.buf.tell():
        return None
    # Not yet filled memory costs nothing: a client may declare much and send little.
    body = np.empty(length, np.uint8).data
    ahead = unreader.take_buffered()
    filled = min(len(ahead), length)
    body[:filled] = ahead[:filled]
    if len(ahead) > length:  # the next request is there already
        unreader.unread(ahead[length:])
    while filled < length:
        try:
            count = unreader.sock.recv_into(body[filled:])
        except TimeoutError:
            stream.failed = True
            raise
        except OSError:  # reset by the client, which is no more than hanging up
            count = 0
        if not count:
            stream.failed = True
            break
        filled += count
    reader.length -= filled
    return body[:filled]
