"""Reads a request's body, the whole of it or none; a large one into one buffer."""

from __future__ import annotations

from collections.abc import Iterable
from io import BytesIO
from typing import IO, TYPE_CHECKING, Any, TypeVar

import numpy as np
from flask import Request, request
from gunicorn.http.body import Body, LengthReader
from gunicorn.http.unreader import SocketUnreader
from werkzeug.datastructures import FileStorage, MultiDict

from api.payloads.binary_tensors import HEADER_VARIABLE
from api.server.compression import decompress
from shared.errors import BadRequest, PayloadTooLarge, RequestTimeout
from shared.messages import LARGE_BYTES, Buffer

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

BODY_STOPPED = "nothing more of the body came in time: the connection is closed"
Read = TypeVar("Read", bytes, bytes | memoryview)


class BoundedReads:
    """WSGI middleware: reads from gunicorn's socket raise TimeoutError after a silence.

    It costs 0.5 us (2026-11-21). An answer is written when the application has returned it, under
    no time-out: clients may be slow to read a large one. Offers of another protocol are ignored.
    """

    def __init__(self, next_app: WSGIApplication, timeout_seconds: float) -> None:
        """Bound the silence between two pieces of a body to `timeout_seconds` for `next_app`."""
        self._next_app = next_app
        self._timeout_seconds = timeout_seconds

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        # subtle: werkzeug would look for a websocket's route (RFC 9110, 7.8: it may be ignored).
        environ.pop("HTTP_UPGRADE", None)
        client = environ.get("gunicorn.socket")
        if client is None:
            return self._next_app(environ, start_response)
        client.settimeout(self._timeout_seconds)
        try:
            return self._next_app(environ, start_response)
        finally:
            client.settimeout(None)


class InMemoryRequest(Request):
    """Flask's request, whose uploaded files stay in memory, as all other bodies do.

    Flask's own writes those above 500 KB to TMPDIR, which may be read-only, and reads them back.
    """

    def _get_file_stream(self, *_: Any, **__: Any) -> IO[bytes]:
        return BytesIO()


def read_body() -> bytes:
    """Return the body, opened if it came with a Content-Encoding; raises what `decompress` does.

    Raises PayloadTooLarge before reading when the declared length is above the limit.
    A declared length is read in one piece, a tenth of what a request costs less than by werkzeug's
    stream classes (2026-11-21).
    """
    limit = request.max_content_length
    assert limit is not None, "create_app sets it"
    length, encoding = request.content_length, request.environ.get("HTTP_CONTENT_ENCODING")
    if length is None:
        raw = _read_chunked(limit)
    else:
        raw = read_declared(request.environ["wsgi.input"], length, limit)
    return raw if encoding is None else decompress(raw, encoding, limit)


def read_tensors() -> Buffer:
    """Read as `read_body`, a large body of binary tensor data without copying it."""
    environ, length, limit = request.environ, request.content_length, request.max_content_length
    if length is None or HEADER_VARIABLE not in environ or "HTTP_CONTENT_ENCODING" in environ:
        return read_body()
    assert limit is not None, "create_app sets it"
    return read_binary(environ["wsgi.input"], length, limit)


def read_form() -> tuple[MultiDict[str, str], MultiDict[str, FileStorage]]:
    """Return the fields and files of a form, opened if it came with a Content-Encoding."""
    if "HTTP_CONTENT_ENCODING" not in request.environ:
        return request.form, request.files
    raw = read_body()
    parser = request.make_form_data_parser()
    found = parser.parse(BytesIO(raw), request.mimetype, len(raw), request.mimetype_params)
    return found[1], found[2]


def read_declared(stream: IO[bytes], length: int, limit: int) -> bytes:
    """Read `length` bytes; raises PayloadTooLarge above `limit`, BadRequest when there are less.

    Raises RequestTimeout when they stop to come.
    """
    _check_length(length, limit)
    return _complete(_read(stream, length), length)


def read_binary(stream: IO[bytes], length: int, limit: int) -> Buffer:
    """Read as `read_declared`, a large body without copying it."""
    _check_length(length, limit)
    try:
        body: Buffer | None = _read_into_one(stream, length)
    except TimeoutError as error:
        raise RequestTimeout(BODY_STOPPED) from error
    return _complete(_read(stream, length) if body is None else body, length)


def _check_length(length: int, limit: int) -> None:
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


def _read_chunked(limit: int) -> bytes:
    """Read a body without a declared length.

    subtle: werkzeug returns as much of it as the limit allows, as if that were all.
    """
    raw = request.get_data(cache=False)
    if len(raw) == limit and request.input_stream.read(1):
        raise PayloadTooLarge(f"the body is larger than {limit} bytes")
    return raw


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
