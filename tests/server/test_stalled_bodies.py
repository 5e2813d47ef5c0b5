"""A body that stops to come is refused with 408 and its connection closed (a real gunicorn)."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from http.client import HTTPResponse
from pathlib import Path

import orjson
import pytest
from ferry_processes import free_port, running_gunicorn
from registered import register, spec

from shared.model_spec import TensorSpec
from shared.settings import Settings

INFER, PREDICT = "/v2/models/numbers/infer", "/predict/numbers"
BINARY = "Inference-Header-Content-Length: 10"
FORM = "Content-Type: multipart/form-data; boundary=xyz"
PART = b'--xyz\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n'
CHUNKED = "Transfer-Encoding: chunked"
STALLED = {
    "one byte": (INFER, ["Content-Length: 1000"], b"{"),
    "nothing": (INFER, ["Content-Length: 1000"], b""),
    "binary": (INFER, [BINARY, "Content-Length: 1000"], b"{"),
    "large and binary": (INFER, [BINARY, "Content-Length: 1000000"], b"{" * 1000),
    "by Flask": (PREDICT, ["Content-Length: 1000"], b"{"),
    "compressed": (INFER, ["Content-Encoding: gzip", "Content-Length: 1000"], b"\x1f"),
    "chunked": (INFER, [CHUNKED], b"4\r\n{"),
    "between chunks": (PREDICT, [CHUNKED], b"1\r\n{\r\n"),
    "form": (PREDICT, [FORM, "Content-Length: 1000"], PART),
    "chunked form": (PREDICT, [FORM, CHUNKED], b"%x\r\n%s\r\n" % (len(PART), PART)),
}


@pytest.fixture(scope="module")
def log_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("log") / "api.log"


@pytest.fixture(scope="module")
def port(redis_url: str, log_file: Path) -> Iterator[int]:
    settings = Settings(
        redis_url=redis_url,
        key_prefix="stalled-bodies",
        port=free_port(),
        api_processes=1,
        request_timeout_seconds=0.3,
    )
    register(settings, spec("numbers", TensorSpec(name="x", datatype="FP32", dims=(4,))))
    with running_gunicorn(settings, log_file):
        yield settings.port


@pytest.fixture
def connection(port: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        yield connection


def stall(connection: socket.socket, case: str = "one byte") -> tuple[int, str]:
    """Send half a body and no more; return the status and code of the answer."""
    path, headers, part = STALLED[case]
    head = "\r\n".join([f"POST {path} HTTP/1.1", "Host: ferry", *headers, "", ""])
    connection.sendall(head.encode() + part)
    response = HTTPResponse(connection)
    response.begin()
    return response.status, orjson.loads(response.read())["code"]


def live(connection: socket.socket) -> int:
    connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: ferry\r\n\r\n")
    response = HTTPResponse(connection)
    response.begin()
    response.read()
    return response.status


@pytest.mark.parametrize("case", STALLED)
def test_a_stalled_body_is_answered_with_408_and_its_connection_closed(
    connection: socket.socket, case: str, log_file: Path
) -> None:
    assert stall(connection, case) == (408, "request_timeout")

    assert connection.recv(1) == b""
    assert "rror" not in log_file.read_text()


def test_an_idle_connection_outlives_the_timeout_of_bodies(
    connection: socket.socket, port: int
) -> None:
    assert live(connection) == 200

    with socket.create_connection(("127.0.0.1", port), timeout=10) as other:
        stall(other)

    assert live(connection) == 200
