"""Plain requests go past WSGI and are answered as by it (a real gunicorn, a real worker)."""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from echo_models import add_echo
from ferry_processes import free_port, running_gunicorn, running_worker
from raw_http import Connection, Reply, connected, message
from registered import register, spec

from shared.model_spec import TensorSpec
from shared.settings import Settings

INFER = "/v2/models/echo/infer"
LIMIT = 500_000
TIMEOUT_SECONDS = 2.0
USUAL = ("X-Twice: 1", "X-Twice: 2")
"""A header that is there twice is joined by WSGI's rules, and means nothing else to us."""
LARGE = 30_000


def v2(*values: float) -> bytes:
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, len(values)], "data": values}
    return json.dumps({"id": "7", "inputs": [tensor]}).encode()


def binary(count: int) -> tuple[bytes, str]:
    """Return a body that has and wants binary data, and the header that says where it begins."""
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, count]}
    tensor["parameters"] = {"binary_data_size": 4 * count}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    data = struct.pack(f"<{count}f", *range(count))
    return head + data, f"Inference-Header-Content-Length: {len(head)}"


PLAIN = message(INFER, v2(1.5, 2.5))
FEW, FEW_HEADER = binary(4)
MANY, MANY_HEADER = binary(LARGE)
ALIKE: dict[str, tuple[int, str, bytes, list[str]]] = {
    "plain": (200, INFER, v2(1.5, 2.5), []),
    "named version": (200, "/v2/models/echo/versions/1/infer", v2(1.5), []),
    "query": (200, INFER + "?a=b", v2(1.5), []),
    "types": (200, INFER, v2(1.5), ["Content-Type: application/json", "Accept: */*"]),
    "packed": (200, INFER, v2(*[0.5] * LARGE), ["Accept-Encoding: gzip, deflate"]),
    "too small to be packed": (200, INFER, v2(1.5), ["Accept-Encoding: gzip, deflate"]),
    "nothing but packed": (200, INFER, v2(1.5), ["Accept-Encoding: gzip, identity;q=0"]),
    "above 64 KiB": (200, INFER, v2(*[0.5] * LARGE), []),
    "binary": (200, INFER, FEW, [FEW_HEADER]),
    "binary above 64 KiB": (200, INFER, MANY, [MANY_HEADER]),
    "binary header too long": (400, INFER, FEW, ["Inference-Header-Content-Length: 9999"]),
    "malformed": (400, INFER, b"{", []),
    "empty": (400, INFER, b"", []),
    "wrong shape": (400, INFER, v2(1.5).replace(b"[1, 1]", b"[1, 3]"), []),
    "bad timeout": (400, INFER, v2(1.5), ["X-Request-Timeout: soon"]),
    "unknown model": (404, "/v2/models/nothing/infer", v2(1.5), []),
    "unknown version": (404, "/v2/models/echo/versions/9/infer", v2(1.5), []),
    "too large": (413, INFER, b" " * (LIMIT + 1), []),
    "not ready": (503, "/v2/models/loading/infer", v2(1.5), []),
    "expired": (503, "/v2/models/idle/infer", v2(1.5), ["X-Request-Timeout: 0.1"]),
}
LEFT = {
    "in the body": PLAIN[:-10],
    "waiting": message("/v2/models/idle/infer", v2(1.5)),
    "answered": message(INFER, v2(*[0.5] * LARGE)),
}


@pytest.fixture(scope="module")
def settings(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Settings under which a real worker serves `echo`; `idle` and `loading` answer nothing."""
    repository = tmp_path_factory.mktemp("models")
    add_echo(repository, "FP32", name="echo", dims="[-1]")
    settings = Settings(
        redis_url=redis_url,
        key_prefix="fast-path",
        models=str(repository),
        port=free_port(),
        api_processes=1,
        max_body_bytes=LIMIT,
        request_timeout_seconds=TIMEOUT_SECONDS,
    )
    with running_worker(settings):
        x = TensorSpec(name="x", datatype="FP32", dims=(-1,))
        register(settings, spec("idle", x))
        register(settings, spec("loading", x), ready=False)
        yield settings


@pytest.fixture(scope="module")
def log_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("log") / "api.log"


@pytest.fixture(scope="module")
def port(settings: Settings, log_file: Path) -> Iterator[int]:
    with running_gunicorn(settings, log_file):
        yield settings.port


@pytest.fixture
def connection(port: int) -> Iterator[Connection]:
    with connected(port) as connection:
        yield connection


def values(reply: Reply) -> Any:
    assert reply.status == 200, reply
    return json.loads(reply.body)["outputs"][0]["data"]


@pytest.mark.parametrize("case", ALIKE)
def test_both_ways_answer_alike_and_go_on(port: int, case: str) -> None:
    status, path, body, headers = ALIKE[case]
    with connected(port) as plain, connected(port) as usual:
        ours = plain.ask(message(path, body, *headers))
        wanted = usual.ask(message(path, body, *headers, *USUAL))

        assert (ours.status, ours.header("Connection")) == (status, "keep-alive")
        assert ours.comparable() == wanted.comparable()
        for _ in range(2):  # learned, then known
            assert plain.ask(message(path, body, *headers)).comparable() == wanted.comparable()
        assert values(plain.ask(PLAIN)) == values(usual.ask(PLAIN)) == [1.5, 2.5]


@pytest.mark.parametrize("extra", [(), USUAL])
def test_a_body_that_is_refused_unread_is_not_taken_for_a_request(
    connection: Connection, extra: tuple[str, ...]
) -> None:
    """subtle: its rest, which comes behind the answer, looks like a request."""
    body = PLAIN * (LIMIT // len(PLAIN) + 1)
    refused = connection.ask(message(INFER, b"", f"Content-Length: {len(body)}", *extra))
    connection.send(body + message("/v2/models/nothing/infer", b"{}"))

    second = connection.read()
    assert second is not None
    assert (refused.status, refused.header("Connection")) == (413, "keep-alive")
    assert second.status == 404


@pytest.mark.parametrize("extra", [(), USUAL])
def test_a_body_that_stops_to_come_ends_its_connection_and_no_idle_one(
    port: int, connection: Connection, extra: tuple[str, ...]
) -> None:
    with connected(port) as idle:
        assert idle.ask(PLAIN).status == 200
        reply = connection.ask(message(INFER, b"{", "Content-Length: 1000", *extra))

        assert (reply.status, json.loads(reply.body)["code"]) == (408, "request_timeout")
        assert connection.read() is None
        assert idle.ask(PLAIN).status == 200


def test_a_body_may_come_in_two_pieces(connection: Connection) -> None:
    for cut in (len(PLAIN) - 10, len(PLAIN) - len(v2(1.5, 2.5))):
        connection.send(PLAIN[:cut])
        time.sleep(0.3)

        assert values(connection.ask(PLAIN[cut:])) == [1.5, 2.5]


def test_a_known_head_with_another_body_has_another_answer(connection: Connection) -> None:
    for value in (1.5, 2.5, 3.5):
        assert values(connection.ask(message(INFER, v2(value)))) == [value]


def test_pipelined_requests_are_answered_in_order(connection: Connection) -> None:
    connection.send(b"".join(message(INFER, v2(float(number))) for number in range(5)))

    replies = [connection.read() for _ in range(5)]

    assert [values(reply) for reply in replies if reply] == [[0.0], [1.0], [2.0], [3.0], [4.0]]


@pytest.mark.parametrize("before", [b"", PLAIN], ids=["at once", "later"])
@pytest.mark.parametrize("sent", LEFT.values(), ids=LEFT)
def test_a_client_that_hangs_up_harms_nobody(
    port: int, before: bytes, sent: bytes, log_file: Path
) -> None:
    for how in (0, 1):
        with connected(port) as leaving:
            # On, and for 0 s: the connection is reset.
            leaving.socket.setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", how, 0)
            )
            if before:
                assert leaving.ask(before).status == 200
            leaving.send(sent)
    with connected(port) as other:
        assert values(other.ask(PLAIN)) == [1.5, 2.5]
    assert "rror" not in log_file.read_text()


def test_a_plain_answer_comes_in_one_write(connection: Connection) -> None:
    """WSGI writes the head first; of so many, some would be read before their body is there."""
    for _ in range(100):
        connection.send(PLAIN)
        head, _, body = connection.socket.recv(65536).partition(b"\r\n\r\n")

        assert f"Content-Length: {len(body)}\r\n".encode() in head + b"\r\n"
