"""What gunicorn itself cannot read is refused in the shape of every error."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from ferry_processes import free_port, running_gunicorn
from raw_http import connected

from shared.settings import Settings

GET = b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n"
POST = b"POST /v2/models/m/infer HTTP/1.1\r\nHost: localhost\r\n"


@pytest.fixture(scope="module")
def port(redis_url: str) -> Iterator[int]:
    """The port of an API that no worker stands behind."""
    settings = Settings(redis_url=redis_url, key_prefix="unreadable", port=free_port())
    with running_gunicorn(settings):
        yield settings.port


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        (b"hello\r\n\r\n", 400, "bad_request"),
        (b"GET\r\n\r\n", 400, "bad_request"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400, "bad_request"),
        (b"GET /v2 HTTP/3.0\r\n\r\n", 400, "bad_request"),
        (b"G<T /v2 HTTP/1.1\r\n\r\n", 400, "bad_request"),
        (b"GET /" + b"a" * 5000 + b" HTTP/1.1\r\n\r\n", 414, "bad_request"),
        (GET + b"X-Long: " + b"a" * 9000 + b"\r\n\r\n", 431, "bad_request"),
        (GET + b"".join(b"X-%d: 1\r\n" % n for n in range(150)) + b"\r\n", 431, "bad_request"),
        (GET + b"no colon\r\n\r\n", 400, "bad_request"),
        (GET + b"Bad Name: 1\r\n\r\n", 400, "bad_request"),
        (POST + b"Content-Length: many\r\n\r\n", 400, "bad_request"),
        (POST + b"Content-Length: -1\r\n\r\n", 400, "bad_request"),
        (POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n{}", 400, "bad_request"),
        (POST + b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n{}", 400, "bad_request"),
        (POST + b"Expect: a-miracle\r\nContent-Length: 0\r\n\r\n", 417, "bad_request"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_it_is_refused_in_json(port: int, sent: bytes, status: int, code: str) -> None:
    with connected(port) as connection:
        reply = connection.ask(sent)

    assert reply.status == status
    assert reply.header("Content-Type") == "application/json"
    assert reply.header("Connection") == "close"
    body = json.loads(reply.body)
    assert set(body) == {"error", "code"} and body["error"] and body["code"] == code


def test_an_unknown_transfer_encoding_is_refused_in_json(port: int) -> None:
    with connected(port) as connection:
        reply = connection.ask(POST + b"Transfer-Encoding: rot13\r\n\r\n")

    # gunicorn's parser in C says 400, the one in Python 501.
    code = {400: "bad_request", 501: "unsupported"}[reply.status]
    assert json.loads(reply.body)["code"] == code
