"""A body above FERRY_MAX_BODY_BYTES is refused with 413 before it was sent (a real gunicorn)."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator

import pytest
from answers import refusal
from ferry_processes import free_port, running_gunicorn
from flask.testing import FlaskClient
from registered import register, spec

from api.app import create_app
from shared.model_spec import TensorSpec
from shared.settings import Settings

LIMIT = 100_000
CHUNK = b"2710\r\n" + b"x" * 10_000 + b"\r\n"
PATHS = ("/v2/models/numbers/infer", "/predict/numbers")


@pytest.fixture(scope="module")
def settings(redis_url: str) -> Settings:
    return Settings(
        redis_url=redis_url,
        key_prefix="body-limit",
        port=free_port(),
        api_processes=1,
        max_body_bytes=LIMIT,
        request_timeout_seconds=1.0,
    )


@pytest.fixture(scope="module")
def port(settings: Settings) -> Iterator[int]:
    register(settings, spec("numbers", TensorSpec(name="x", datatype="FP32", dims=(4,))))
    with running_gunicorn(settings):
        yield settings.port


@pytest.fixture
def connection(port: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        yield connection


def head(path: str, *headers: str) -> bytes:
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: localhost", *headers, "", ""]).encode()


def read_answer(connection: socket.socket) -> tuple[int, dict[str, str]]:
    """Read one response whose length its header states: status and JSON body."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += connection.recv(65536)
    top, _, body = received.partition(b"\r\n\r\n")
    lines = top.decode().split("\r\n")
    length = next(int(line[16:]) for line in lines if line.lower().startswith("content-length: "))
    while len(body) < length:
        body += connection.recv(65536)
    return int(lines[0].split()[1]), json.loads(body)


def refused(connection: socket.socket) -> str:
    status, body = read_answer(connection)
    assert (status, body["code"]) == (413, "payload_too_large")
    return body["error"]


@pytest.mark.parametrize("path", PATHS)
def test_a_huge_content_length_is_refused_before_any_of_the_body(
    connection: socket.socket, path: str
) -> None:
    began = time.monotonic()
    connection.sendall(head(path, "Content-Length: 10000000000"))

    assert refused(connection) == f"the body is 10000000000 bytes, at most {LIMIT} bytes are taken"
    assert time.monotonic() - began < 5.0


def test_a_huge_multipart_upload_is_refused_before_any_of_it(connection: socket.socket) -> None:
    multipart = "Content-Type: multipart/form-data; boundary=xyz"
    connection.sendall(head("/predict/numbers", multipart, "Content-Length: 10000000000"))

    assert str(LIMIT) in refused(connection)


def test_a_client_that_waits_for_100_continue_is_refused(connection: socket.socket) -> None:
    connection.sendall(head(PATHS[0], "Content-Length: 200000", "Expect: 100-continue"))

    status = connection.recv(65536).split()[1]
    assert status in (b"100", b"413")


@pytest.mark.parametrize("path", PATHS)
def test_a_chunked_body_is_refused_once_it_is_above_the_limit(
    connection: socket.socket, path: str
) -> None:
    connection.sendall(head(path, "Transfer-Encoding: chunked"))
    for _ in range(LIMIT // 10_000 + 1):
        connection.sendall(CHUNK)

    assert refused(connection) == f"the body is larger than {LIMIT} bytes"


def test_a_chunked_multipart_upload_is_refused_once_it_is_above_the_limit(
    connection: socket.socket,
) -> None:
    multipart = "Content-Type: multipart/form-data; boundary=xyz"
    connection.sendall(head("/predict/numbers", multipart, "Transfer-Encoding: chunked"))
    part = b'--xyz\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n'
    connection.sendall(b"%x\r\n%s\r\n" % (len(part), part))
    for _ in range(LIMIT // 10_000 + 1):
        connection.sendall(CHUNK)

    assert f"larger than {LIMIT} bytes" in refused(connection)


def test_a_chunked_body_of_exactly_the_limit_is_read(connection: socket.socket) -> None:
    connection.sendall(head(PATHS[0], "Transfer-Encoding: chunked"))
    connection.sendall(CHUNK * (LIMIT // 10_000) + b"0\r\n\r\n")

    status, body = read_answer(connection)

    assert (status, body["code"]) == (400, "bad_request")


def test_a_body_of_exactly_the_limit_is_read(connection: socket.socket) -> None:
    connection.sendall(head(PATHS[0], f"Content-Length: {LIMIT}") + b" " * LIMIT)

    status, body = read_answer(connection)

    assert (status, body["code"]) == (400, "bad_request")


def test_a_body_that_ends_early_is_refused(connection: socket.socket) -> None:
    connection.sendall(head(PATHS[0], "Content-Length: 1000") + b'{"inputs": []}')
    connection.shutdown(socket.SHUT_WR)

    status, body = read_answer(connection)

    assert (status, body["code"]) == (400, "bad_request")


def test_after_a_refusal_the_server_answers_on(port: int) -> None:
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(head(PATHS[0], "Content-Length: 10000000000"))
            refused(connection)

    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert read_answer(connection)[0] == 200


@pytest.fixture(scope="module")
def client(settings: Settings) -> FlaskClient:
    return create_app(settings).test_client()


def test_too_many_parts_are_refused(client: FlaskClient) -> None:
    fields = {f"field-{index}": "x" for index in range(300)}

    response = client.post("/predict/numbers", data=fields, content_type="multipart/form-data")

    assert "parts" in refusal(response, 413, "payload_too_large")
