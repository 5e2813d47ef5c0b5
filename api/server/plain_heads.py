"""Tells which heads are plain infer requests', and knows those again that came before.

fast: gunicorn's parser, although in C, takes several times as long for a head as it takes to look
the same bytes up, and half of that again where only values differ that nothing depends on.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from gunicorn.http.unreader import IterUnreader

from api.access.browsers import Browsers
from api.access.guard import AUTHORIZATION, X_API_KEY, secret_of
from api.infer.inference import IDEMPOTENCY_KEY, PREFER
from api.infer.options import TIMEOUT_HEADER
from api.payloads.binary_tensors import HEADER_VARIABLE
from api.server.compression import Coding, chosen
from api.tracing import TRACEPARENT_VARIABLE, TRACESTATE_VARIABLE
from shared.errors import FerryError
from shared.logs import REQUEST_ID_VARIABLE

if TYPE_CHECKING:
    from wsgiref.types import WSGIEnvironment

PATHS = "/v2/models/"
ROUTE = re.compile(r"/v2/models/([\w.-]+)(?:/versions/(\d+))?/infer", re.ASCII)
START = f"POST {PATHS}".encode()
HEAD_END = b"\r\n\r\n"
LENGTH_VARIABLE = "CONTENT_LENGTH"
LOOKED_AT = (
    "PATH_INFO", HEADER_VARIABLE, TIMEOUT_HEADER, REQUEST_ID_VARIABLE, TRACEPARENT_VARIABLE,
    TRACESTATE_VARIABLE,
)  # fmt: skip
"""The part of WSGI's environment that the answer depends on, besides the body."""
LEFT_TO_FLASK = (
    "HTTP_CONTENT_ENCODING", PREFER, IDEMPOTENCY_KEY, "HTTP_ORIGIN", "HTTP_SEC_FETCH_SITE",
)  # fmt: skip
"""Headers of requests that are not plain, those that browsers send of their pages among them."""
JUDGED = (
    "HTTP_HOST", AUTHORIZATION, X_API_KEY, "HTTP_ACCEPT_ENCODING", "HTTP_CONNECTION",
    "HTTP_TRANSFER_ENCODING",
)  # fmt: skip
"""Headers by whose values gunicorn or `PlainHeads.plain` decides something; of all others it is by
their names, or it is a body's length, which is looked at each time."""
FIELD_VALUE = re.compile(rb":([\t -~]*)\r\n")
"""What every parser takes for a header's value: neither controls nor bytes beyond ASCII."""
PLAIN_HEAD = re.compile(rb"[ -~]+\r\n(?:[A-Za-z0-9-]+:[\t -~]*+\r\n)++\r\n")
"""Only heads of such lines are taken apart: `FIELD_VALUE` would look at the rest of another line
once for each of its colons."""
REQUEST_LINE_END = b" HTTP/1.1\r\n"
MAX_HEAD_BYTES = 2048
MAX_HEADS = 1024
"""The longest take 3 MB together. What stands in them (tokens, cookies) stays in memory as long."""


class PlainRequest(NamedTuple):
    """A plain infer request's head: a model, a body of `length` bytes, the answer's coding.

    `environ` is as much of WSGI's as its answer looks at, `secret` the API key that is in it.
    """

    model: str
    version: str | None
    length: int
    environ: WSGIEnvironment
    coding: Coding | None
    secret: str | None


class HeadShape(NamedTuple):
    """Heads of the same names, by the places of their values: judged, looked at, the length.

    `known` has a plain request for each combination of judged values.
    """

    judged: tuple[int, ...]
    looked_at: tuple[tuple[str, int], ...]
    length: int
    known: dict[tuple[bytes, ...], PlainRequest]

    @classmethod
    def of(cls, headers: Iterable[bytes], schemes: Iterable[str]) -> HeadShape:
        """Return the shape of heads with these headers and a length, of which none is known yet.

        By `schemes` gunicorn tells whether a proxy was asked by TLS.
        """
        names = [_variable(header.decode("ascii").upper()) for header in headers]
        judged = {*JUDGED, *map(_variable, schemes)}
        return cls(
            tuple([place for place, name in enumerate(names) if name in judged]),
            tuple([(name, place) for place, name in enumerate(names) if name in LOOKED_AT]),
            names.index(LENGTH_VARIABLE),
            {},
        )

    def judged_in(self, values: list[bytes]) -> tuple[bytes, ...]:
        """Return those of a head's values by which it is known."""
        return tuple([values[place] for place in self.judged])

    def request(self, values: list[bytes]) -> PlainRequest | None:
        """Return the request of a head with these values, None where those judged are not known."""
        alike, length = self.known.get(self.judged_in(values)), values[self.length].strip(b" \t")
        if alike is None or not length.isdigit():
            return None
        environ = {"PATH_INFO": alike.environ["PATH_INFO"]}
        for name, place in self.looked_at:
            environ[name] = values[place].strip(b" \t").decode("ascii")
        model, version, _, _, coding, secret = alike
        return PlainRequest(model, version, int(length), environ, coding, secret)


class PlainHeads:
    """One process's: heads as gunicorn parses them, and by their bytes those that came before."""

    def __init__(self, browsers: Browsers, most_bytes: int) -> None:
        """Judge hosts as `browsers` do; know no heads again of bodies of more than `most_bytes`."""
        self._browsers = browsers
        self._most_bytes = most_bytes
        self._heads: dict[bytes, PlainRequest | None] = {}
        self._shapes: dict[tuple[bytes, ...], HeadShape] = {}

    def find(self, head: bytes, last: Any) -> PlainRequest | None:
        """Return what a head asks for, None for one that gunicorn is to parse, or that is no head.

        `last` is the connection's last request that gunicorn parsed.
        """
        if head in self._heads:
            return self._heads[head]
        if not head.startswith(START) or len(head) > MAX_HEAD_BYTES:
            return None
        # Gunicorn parses by its settings and, only if those trust some peers and not others, by
        # the peer.
        if "*" not in last.cfg.forwarded_allow_ips:
            return None
        plain = self._alike(head)
        if plain is None:
            return self._learned(head, last)
        if len(self._heads) < MAX_HEADS:
            self._heads[head] = plain
        return plain

    def _alike(self, head: bytes) -> PlainRequest | None:
        """Return what a head asks for that differs from another in what nobody judges."""
        if PLAIN_HEAD.fullmatch(head) is None:
            return None
        parts = FIELD_VALUE.split(head)
        shape = self._shapes.get(tuple(parts[::2]))
        plain = None if shape is None else shape.request(parts[1::2])
        return None if plain is None or plain.length > self._most_bytes else plain

    def _learned(self, head: bytes, last: Any) -> PlainRequest | None:
        """Parse a head by gunicorn and remember the result, None for one that is not plain."""
        try:
            request = type(last)(last.cfg, IterUnreader(iter([head])), last.peer_addr, 2)
        except Exception:  # a border: it is parsed again, and answered with what is wrong with it
            return None
        plain = None if request.unreader.take_buffered() else self.plain(request)
        if plain and plain.length > self._most_bytes:
            plain = None
        if len(self._heads) >= MAX_HEADS:
            self._heads.clear()
            self._shapes.clear()
        self._heads[head] = plain
        if plain is not None and request.limit_request_field_size >= MAX_HEAD_BYTES:
            self._learn_shape(head, plain, last.cfg.secure_scheme_headers)
        return plain

    def _learn_shape(self, head: bytes, plain: PlainRequest, schemes: Iterable[str]) -> None:
        """Know a head again from now on where it differs in what nobody judges.

        Not where gunicorn may make another name of one (X_Id), or a value has unusual bytes.
        """
        if PLAIN_HEAD.fullmatch(head) is None:
            return
        parts = FIELD_VALUE.split(head)
        names, values = tuple(parts[::2]), parts[1::2]
        headers = (names[0].partition(REQUEST_LINE_END)[2], *names[1:-1])
        shape = self._shapes.get(names) or HeadShape.of(headers, schemes)
        shape.known[shape.judged_in(values)] = plain
        self._shapes[names] = shape

    def plain(self, request: Any) -> PlainRequest | None:
        """Return the head of gunicorn's request, None for one that takes the usual way.

        So for one that is refused at the door but for its key, which is looked at each time.
        """
        if (
            request.method != "POST"
            or not request.path.startswith(PATHS)
            or request.version != (1, 1)
            or request.should_close()
        ):
            return None
        route, environ = ROUTE.fullmatch(request.path), _environment(request)
        if route is None or environ is None or any(name in environ for name in LEFT_TO_FLASK):
            return None
        length = environ.get(LENGTH_VARIABLE, "")
        if not length.isdecimal():
            return None
        try:
            self._browsers.check_host(environ.get("HTTP_HOST", ""))
            secret = secret_of(environ.get(AUTHORIZATION), environ.get(X_API_KEY))
        except FerryError:
            return None
        accept = environ.get("HTTP_ACCEPT_ENCODING")
        kept = {name: environ[name] for name in LOOKED_AT if name in environ}
        coding = None if accept is None else chosen(accept)
        return PlainRequest(route[1], route[2], int(length), kept, coding, secret)


def _environment(request: Any) -> WSGIEnvironment | None:
    """Return the path and the headers as WSGI has them.

    None when a header is there twice, or wants another answer first, or another protocol.
    """
    environ = {"PATH_INFO": request.path}
    for name, value in request.headers:
        key = _variable(name)
        if key in environ or key in ("HTTP_EXPECT", "HTTP_UPGRADE"):
            return None
        environ[key] = value
    return environ


def _variable(name: str) -> str:
    """Return a header's name as WSGI has it."""
    return LENGTH_VARIABLE if name == "CONTENT-LENGTH" else "HTTP_" + name.replace("-", "_")
