"""Compressed bodies: opens requests in bounded memory, packs answers for clients that ask.

Sources: RFC 9110, 8.4 (content codings) and 12.5.3 (Accept-Encoding); RFC 1950 to 1952.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from shared.bodies.turns import let_others
from shared.errors import BadRequest, PayloadTooLarge, UnsupportedEncoding, shown
from shared.messages import Buffer

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

WINDOWS = {"gzip": 31, "deflate": 15}
"""zlib's `wbits` of each coding, the preferred one first; `deflate` means zlib's format."""
RAW_DEFLATE = -15
ALIASES = {"x-gzip": "gzip"}
LEVEL = 1
"""100 MB/s of JSON's numbers to 48 %; level 6 reaches 43 % at 13 MB/s (2026-11-21)."""
SMALLEST_BYTES = 1024
STEP_BYTES = 2**20
FREE_BYTES = 2**20
MAX_RATIO = 100
"""So many times its own size may a body open to, once it opens to more than FREE_BYTES: JSON of
random numbers opens to 2 times, of small whole ones to 10."""
LEFT_PLAIN = re.compile(r"/v2(?:/(?!requests/|.*/infer$).*)?")
"""Descriptions: Triton's asyncio client asks for packed ones and cannot open them."""
SLICE_BYTES = 256 * 1024
"""The size of one step, a few milliseconds, between which other requests have their turn."""
_WEIGHT = re.compile(r"\s*q\s*=\s*([01](?:\.\d{0,3})?)\s*", re.ASCII)
_Head = tuple[str, list[tuple[str, str]]]


class Coding(NamedTuple):
    """A content coding that a client accepts; `only` says that it takes no plain answer."""

    name: str
    only: bool


def decompress(raw: bytes, encoding: str, limit: int) -> bytes:
    """Open a body that came with `Content-Encoding: <encoding>`.

    Never holds more than `limit` bytes and one of what is inside, nor than MAX_RATIO times its own
    size. `deflate` may come without zlib's wrapping, as from some clients. Raises PayloadTooLarge,
    UnsupportedEncoding, and BadRequest for data that is damaged, cut off, or followed by more.
    """
    name = encoding.strip().lower()
    name = ALIASES.get(name, name)
    if name == "identity":
        return raw
    if name not in WINDOWS:
        raise UnsupportedEncoding(
            f"Content-Encoding {shown(encoding)}: one of {', '.join(WINDOWS)} is taken"
        )
    opener = zlib.decompressobj(_window(name, raw))
    body = b"".join(_opened(opener, raw, name, limit, max(FREE_BYTES, MAX_RATIO * len(raw))))
    if not opener.eof:
        raise BadRequest(f"the body's {name} data is cut off")
    if opener.unused_data:
        raise BadRequest(f"something stands behind the body's {name} data")
    return body


@lru_cache(maxsize=256)
def chosen(accept: str) -> Coding | None:
    """Return the best coding for the header `Accept-Encoding`, None for a plain answer.

    None also for a client that takes nothing there is: it gets the answer as it is, which RFC 9110
    leaves to the server.
    """
    weights = _weights(accept)
    others = weights.get("*", 0.0)
    best = max(WINDOWS, key=lambda name: weights.get(name, others))
    weight = weights.get(best, others)
    plain = weights.get("identity", weights.get("*"))
    if weight == 0.0 or (plain is not None and plain > weight):
        return None
    return Coding(best, only=plain == 0.0)


class Compressed:
    """WSGI middleware: packs bodies above 1 KiB of a known length, for clients that ask.

    v2's descriptions and all errors stay as they are unless the client takes nothing else.
    """

    def __init__(self, next_app: WSGIApplication) -> None:
        """Pack the answers of `next_app`, which must start its response before it returns."""
        self._next_app = next_app

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        accept = environ.get("HTTP_ACCEPT_ENCODING")
        coding = None if accept is None else chosen(accept)
        if (
            coding is None
            or environ["REQUEST_METHOD"] == "HEAD"
            or (LEFT_PLAIN.fullmatch(environ["PATH_INFO"]) and not coding.only)
        ):
            return self._next_app(environ, start_response)
        held = _Held(start_response, coding)
        return held.finish(self._next_app(environ, held))


class _Held:
    """A `start_response` that passes plain answers on and holds those that are to be packed."""

    def __init__(self, start_response: StartResponse, coding: Coding) -> None:
        self._start_response = start_response
        self._coding = coding
        self._head: _Head | None = None
        self._written: list[bytes] = []

    def __call__(
        self, status: str, headers: list[tuple[str, str]], exc_info: Any = None, /
    ) -> Callable[[bytes], object]:
        length = _packable_bytes(headers)
        if is_to_be_packed(self._coding, length, is_good=status.startswith("200")):
            self._head = (status, headers)
            return self._written.append
        return self._start_response(status, headers, exc_info)

    def finish(self, answered: Iterable[bytes]) -> Iterable[bytes]:
        """Return the body, packed if that makes it smaller or must be."""
        if self._head is None:
            return answered
        status, headers = self._head
        try:
            body = b"".join([*self._written, *answered])
        finally:
            close = getattr(answered, "close", None)
            if close is not None:
                close()
        headers, body = packed(headers, body, self._coding)
        self._start_response(status, headers)
        return (body,)


def packed(
    headers: list[tuple[str, str]], body: bytes, coding: Coding
) -> tuple[list[tuple[str, str]], bytes]:
    """Return both, changed if packing makes the body smaller or must be done."""
    smaller = compress(body, coding.name)
    if len(smaller) < len(body) or coding.only:
        return _packed_headers(headers, coding.name, len(smaller)), smaller
    return headers, body


def is_to_be_packed(coding: Coding, length: int, *, is_good: bool) -> bool:
    """Tell whether an answer of that length is packed for a client that accepts `coding`."""
    return (is_good and length > SMALLEST_BYTES) or (length > 0 and coding.only)


def compress(body: bytes, coding: str) -> bytes:
    """Pack a body; between two slices other requests of the process have their turn."""
    packer = zlib.compressobj(LEVEL, zlib.DEFLATED, WINDOWS[coding])
    pieces = []
    for piece in _slices(body):
        pieces.append(packer.compress(piece))
    pieces.append(packer.flush())
    return b"".join(pieces)


def _opened(
    opener: zlib._Decompress, raw: bytes, name: str, limit: int, most: int
) -> Iterable[bytes]:
    """Open piece by piece, to no more than `limit` bytes and no more than `most`."""
    left = min(limit, most)
    try:
        for piece in _slices(raw):
            for opened in _steps(opener, piece):
                left -= len(opened)
                if left < 0 and most < limit:
                    raise PayloadTooLarge(
                        f"the body opens to more than {MAX_RATIO} times its {len(raw)} bytes"
                    )
                if left < 0:
                    raise PayloadTooLarge(f"the body opens to more than {limit} bytes")
                yield opened
    except zlib.error as error:
        raise BadRequest(f"the body is not {name} data, or is damaged: {error}") from error


def _steps(opener: zlib._Decompress, piece: Buffer) -> Iterable[bytes]:
    """Open a piece in steps of STEP_BYTES at most; others have their turn in between."""
    while True:
        opened = opener.decompress(piece, STEP_BYTES)
        yield opened
        piece = opener.unconsumed_tail
        # subtle: a full step may have left something in the opener though all input is consumed.
        if opener.eof or (len(opened) < STEP_BYTES and not piece):
            return
        let_others()


def _slices(data: bytes) -> Iterable[memoryview]:
    """Cut `data` up; others have their turn in between."""
    view = memoryview(data)
    for start in range(0, len(data), SLICE_BYTES):
        if start:
            let_others()
        yield view[start : start + SLICE_BYTES]


def _window(name: str, raw: bytes) -> int:
    """Return zlib's `wbits`: of `deflate` after a look at its first two bytes (RFC 1950, 2.2)."""
    wrapped = len(raw) > 1 and raw[0] & 15 == zlib.DEFLATED and (raw[0] << 8 | raw[1]) % 31 == 0
    return RAW_DEFLATE if name == "deflate" and not wrapped else WINDOWS[name]


def _weights(accept: str) -> dict[str, float]:
    """Return each coding's weight; one whose weight cannot be read counts as not named."""
    weights = {}
    for item in accept.lower().split(","):
        name, semicolon, parameter = item.partition(";")
        found = _WEIGHT.fullmatch(parameter)
        if found or not semicolon:
            weight = min(float(found[1]), 1.0) if found else 1.0
            weights[ALIASES.get(name.strip(), name.strip())] = weight
    return weights


def _packable_bytes(headers: list[tuple[str, str]]) -> int:
    """Return the declared length, 0 without one and for a packed or partial body."""
    found = {name.lower(): value for name, value in headers}
    if "content-encoding" in found or "content-range" in found:
        return 0
    return int(found.get("content-length", 0))


def _packed_headers(
    headers: list[tuple[str, str]], coding: str, length: int
) -> list[tuple[str, str]]:
    kept = [item for item in headers if item[0].lower() != "content-length"]
    return [
        *kept,
        ("Content-Encoding", coding),
        ("Content-Length", str(length)),
        ("Vary", "Accept-Encoding"),
    ]
