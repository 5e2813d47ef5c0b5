"""A body that stops to come is refused with 408 and its connection closed (a real gunicorn)."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from http.client import HTTPResponse
from pathlib import Path

import orjson
import pytest
from ferry_processes import free_port, running_gunicorn
from registered import register, spec
from waiting import wait_until

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
    head = "\r\n".join([f"POST {path} HTTP/1.1", "Host: localhost", *headers, "", ""])
    connection.sendall(head.encode() + part)
    response = HTTPResponse(connection)
    response.begin()
    return response.status, orjson.loads(response.read())["code"]


def live(connection: socket.socket) -> int:
    connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
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


SLOW = {
    "declared": (["Content-Length: 1000"], [b"{"] + [b" "] * 100),
    "large": (["Content-Length: 1000000"], [b"{"] + [b" "] * 100),
    "binary": ([BINARY, "Content-Length: 1000000"], [b"{"] + [b" "] * 100),
    "chunked": ([CHUNKED], [b"1\r\n{\r\n"] + [b"1\r\n \r\n"] * 100),
}


@pytest.mark.parametrize("case", SLOW)
@pytest.mark.parametrize("path", [INFER, PREDICT])
def test_a_body_that_comes_byte_by_byte_is_given_up(
    connection: socket.socket, case: str, path: str
) -> None:
    headers, pieces = SLOW[case]
    head = "\r\n".join([f"POST {path} HTTP/1.1", "Host: localhost", *headers, "", ""])
    connection.sendall(head.encode())
    connection.settimeout(0.05)  # a sixth of the longest silence between two bytes
    for piece in pieces:
        connection.sendall(piece)
        try:
            answered = connection.recv(1, socket.MSG_PEEK)
            break
        except TimeoutError:
            pass
    else:
        raise AssertionError("it may come as slowly as it likes")
    assert answered
    connection.settimeout(30)
    response = HTTPResponse(connection)
    response.begin()
    assert (response.status, orjson.loads(response.read())["code"]) == (408, "request_timeout")


def test_bodies_under_way_have_a_sum(redis_url: str) -> None:
    settings = Settings(
        redis_url=redis_url,
        key_prefix="sum-of-bodies",
        port=free_port(),
        api_processes=1,
        max_bodies_bytes=3_000_000,
        request_timeout_seconds=120.0,  # the first one stands still meanwhile
    )
    register(settings, spec("numbers", TensorSpec(name="x", datatype="FP32", dims=(4,))))
    head = (
        f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\n{BINARY}\r\nContent-Length: 2500000\r\n\r\n"
    )
    with running_gunicorn(settings):
        address = ("127.0.0.1", settings.port)
        wait_until(lambda: refuses_another(address, head), 30, "a body is refused for another one")
        wait_until(lambda: not refused(address, head), 30, "its bytes are free again")


def refuses_another(address: tuple[str, int], head: str) -> bool:
    """Begin a body; tell whether there is no room for another until the first is answered.

    On a busy machine the other one may take the room first.
    """
    with socket.create_connection(address, timeout=30) as first:
        first.sendall(head.encode() + bytes(2_000_000))
        is_refused = refused(address, head)
        with suppress(OSError):  # the first one was refused, and its connection closed
            first.sendall(bytes(500_000))
        response = HTTPResponse(first)
        return response.fp.readline().startswith(b"HTTP/1.1 400") and is_refused


def refused(address: tuple[str, int], head: str) -> bool:
    """Send a whole body; tell whether there was no room for it."""
    with socket.create_connection(address, timeout=30) as other:
        other.sendall(head.encode() + bytes(2_500_000))
        response = HTTPResponse(other)
        response.begin()
        code = orjson.loads(response.read())["code"]
        assert code in {"queue_full", "bad_request"}
        return bool(code == "queue_full")


def test_a_full_process_closes_what_is_idle_longest(redis_url: str) -> None:
    settings = Settings(
        redis_url=redis_url,
        key_prefix="full-pool",
        port=free_port(),
        api_processes=1,
        api_connections=3,
        max_waiting=2,
    )
    with running_gunicorn(settings), ExitStack() as stack:
        opened = []
        for _ in range(5):
            address = ("127.0.0.1", settings.port)
            one = stack.enter_context(socket.create_connection(address, timeout=30))
            assert live(one) == 200
            opened.append(one)

        assert [one.recv(1) for one in opened[:2]] == [b"", b""]
        assert [live(one) for one in opened[2:]] == [200, 200, 200]
