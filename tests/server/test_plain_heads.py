"""Heads that differ from others in what nobody judges are known without parsing them."""

from __future__ import annotations

from typing import Any

import pytest
from gunicorn.config import Config
from gunicorn.http.message import Request
from gunicorn.http.unreader import IterUnreader
from raw_http import message

from api.access.browsers import Browsers
from api.server import plain_heads
from api.server.plain_heads import MAX_HEADS, PlainHeads, PlainRequest
from shared.settings import Settings

ROUTE = "/v2/models/tiny/infer"
MOST_BYTES = 50_000
FREE = {
    "a trace": "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b71692033%02d-01",
    "an id": "X-Request-Id: 4b%02d",
    "an id of another kind": "X-Amzn-Trace-Id: Root=1-67891233-abcdef0123456789123456%02d",
    "a client behind a proxy": "x-forwarded-for: 10.0.0.%d, 10.1.1.1",
    "a program": "User-Agent: client_%d (a_b: c)",
    "a deadline": "X-Request-Timeout: 1.%d",
    "binary data": "Inference-Header-Content-Length: 1%d",
    "nothing before it": "X-Trace:%d",
    "blanks around it": "X-Request-Id: \t %d \t",
}
OTHERWISE: dict[str, tuple[dict[str, Any], list[str], list[str]]] = {
    "connection": ({}, ["Connection: keep-alive"], ["Connection: close"]),
    "host": ({}, ["Host: localhost"], ["Host: evil.example"]),
    "key": ({}, ["X-API-Key: one"], ["X-API-Key: two"]),
    "bearer": ({}, ["Authorization: Bearer one"], ["Authorization: Bearer two"]),
    "no bearer": ({}, ["Authorization: Bearer one"], ["Authorization: Digest one"]),
    "coding": ({}, ["Accept-Encoding: gzip"], ["Accept-Encoding: identity"]),
    "no length": ({}, ["Content-Length: 2"], ["Content-Length: +2"]),
    "two lengths": ({}, ["Content-Length: 2"], ["Content-Length: 2, 2"]),
    "another script's digit": ({}, ["Content-Length: 2"], ["Content-Length: \xb2"]),
    "large": ({}, ["Content-Length: 2"], [f"Content-Length: {MOST_BYTES + 1}"]),
    "two schemes": (
        {}, ["X-Forwarded-Proto: https", "X-Forwarded-Ssl: on"],
        ["X-Forwarded-Proto: https", "X-Forwarded-Ssl: off"],
    ),
    "long value": (
        {"limit_request_field_size": 100}, ["X-Trace: 1"], ["X-Trace: " + 100 * "1"]
    ),
    "control": ({}, ["X-Trace: 1"], ["X-Trace: 1\0"]),
    "delete": ({}, ["X-Trace: 1"], ["X-Trace: 1\x7f"]),
    "line feed": ({}, ["X-Trace: 1"], ["X-Trace: 1\nConnection: close"]),
    "return": ({}, ["X-Trace: 1"], ["X-Trace: 1\rConnection: close"]),
    "folded": ({}, ["X-Trace: 1"], ["X-Trace: 1\r\n Connection: close"]),
    "one more": ({}, ["X-Trace: 1"], ["X-Trace: 1\r\nConnection: close"]),
    "behind what is not ASCII": (
        {}, ["X-Name: \xe9", "Connection: keep-alive"], ["X-Name: \xe9", "Connection: close"]
    ),
    "last and not ASCII": (
        {}, ["X-Trace: 1", "Inference-Header-Content-Length: \xe9"],
        ["X-Trace: 2", "Inference-Header-Content-Length: \xe9"],
    ),
    "blank behind the name": (
        {"strip_header_spaces": True}, ["Connection : keep-alive"], ["Connection : close"]
    ),
    "underscore": ({}, ["X_Request_Id: 1"], ["X_Request_Id: 2"]),
    "underscore for a dash": (
        {"header_map": "dangerous"}, ["X_Request_Id: 1"], ["X_Request_Id: 2"]
    ),
}  # fmt: skip
"""gunicorn's settings, and two heads of the same names of which one does not mean what the other
does."""


def config_of(**changes: Any) -> Config:
    config = Config()
    for name, value in {"forwarded_allow_ips": "*", **changes}.items():
        config.set(name, value)
    return config


def head_of(*fields: str) -> bytes:
    """Return a head; what is not among its `fields` and must be there is as usual."""
    usual = ("Host: localhost", "Content-Length: 2")
    names = [field.partition(":")[0] for field in fields]
    left = [field for field in usual if field.partition(":")[0] not in names]
    return "\r\n".join([f"POST {ROUTE} HTTP/1.1", *left, *fields, "", ""]).encode("latin-1")


def last_request(config: Config) -> Any:
    """Return what gunicorn made of a connection's first request."""
    return Request(config, IterUnreader(iter([message(ROUTE, b"")])), ("127.0.0.1", 1))


def judged_anew(head: bytes, last: Any) -> PlainRequest | None:
    """Return what who knows no heads makes of one."""
    try:
        request = Request(last.cfg, IterUnreader(iter([head])), last.peer_addr, 2)
    except Exception:
        return None
    found = PlainHeads(Browsers(Settings()), MOST_BYTES).plain(request)
    if request.unreader.take_buffered() or (found and found.length > MOST_BYTES):
        return None
    return found


@pytest.fixture
def heads() -> PlainHeads:
    return PlainHeads(Browsers(Settings()), MOST_BYTES)


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One item for each head that gunicorn parses."""
    counted: list[int] = []
    parse = Request.parse
    monkeypatch.setattr(Request, "parse", lambda *a: (counted.append(1), parse(*a))[1])
    return counted


@pytest.mark.parametrize("case", FREE)
def test_a_head_is_parsed_once_whatever_this_value_is(
    heads: PlainHeads, parsed: list[int], case: str
) -> None:
    last = last_request(config_of())
    sent = [message(ROUTE, b"", FREE[case] % number) for number in range(3)]
    wanted = [judged_anew(head, last) for head in sent]
    parsed.clear()

    assert [heads.find(head, last) for head in sent] == wanted
    assert None not in wanted
    assert len(parsed) == 1


def test_a_head_is_parsed_once_whatever_its_length_is(heads: PlainHeads, parsed: list[int]) -> None:
    last = last_request(config_of())
    parsed.clear()
    sent = [message(ROUTE, b"", f"Content-Length: {length}") for length in (5, 7, MOST_BYTES)]

    assert [found.length for head in sent if (found := heads.find(head, last))] == [
        5,
        7,
        MOST_BYTES,
    ]
    assert len(parsed) == 1
    assert heads.find(message(ROUTE, b"", f"Content-Length: {MOST_BYTES + 1}"), last) is None


def test_known_heads_do_not_crowd_out_how_they_are_known(
    heads: PlainHeads, parsed: list[int]
) -> None:
    last = last_request(config_of())
    parsed.clear()
    for number in range(3 * MAX_HEADS):
        assert heads.find(message(ROUTE, b"", f"traceparent: {number}"), last) is not None

    assert len(parsed) == 1


def test_the_number_of_known_heads_is_bounded(heads: PlainHeads) -> None:
    last = last_request(config_of())
    for number in range(2 * MAX_HEADS + 10):
        assert heads.find(message(ROUTE, b"", f"X-{number}: {number}"), last) is not None
        assert heads.find(message(ROUTE, b"", f"X-{number}: again"), last) is not None

    shapes = heads._shapes.values()
    assert 0 < len(heads._heads) <= MAX_HEADS
    assert 0 < sum(len(shape.known) for shape in shapes) <= MAX_HEADS


@pytest.mark.parametrize("parser", ["auto", "python"])
@pytest.mark.parametrize("case", OTHERWISE)
def test_a_head_that_means_something_else_is_not_taken_for_the_other(
    heads: PlainHeads, case: str, parser: str
) -> None:
    changes, *both = OTHERWISE[case]
    last = last_request(config_of(http_parser=parser, **changes))
    sent = [head_of(*fields) for fields in both]
    wanted = [judged_anew(head, last) for head in sent]

    assert wanted[0] is not None
    assert [heads.find(head, last) for head in (*sent, *sent)] == 2 * wanted


@pytest.mark.parametrize("end", ["\xff", "\x01", "\r", "\x7f"])
def test_a_line_of_many_colons_is_not_taken_apart(
    heads: PlainHeads, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """Each colon would have all behind it looked at: milliseconds, for whoever connects."""
    last, head = last_request(config_of()), head_of("X-Trace: " + 1800 * ":" + end)
    monkeypatch.setattr(plain_heads, "FIELD_VALUE", None)

    heads.find(head, last)
