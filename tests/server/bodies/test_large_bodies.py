"""Large binary requests: read from gunicorn's socket and sent to Redis from one buffer."""

from __future__ import annotations

import json
import socket
import struct
import tracemalloc
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from echo_models import add_echo
from ferry_processes import free_port, running_gunicorn, running_worker
from gunicorn.http.body import Body, LengthReader
from gunicorn.http.unreader import SocketUnreader
from own_valkey import OwnValkey
from registered import spec
from waiting import wait_until

from api.payloads.binary_tensors import HEADER
from api.payloads.v2_json import parse_infer
from api.server.body import read_binary
from shared.errors import BadRequest
from shared.messages import LARGE_BYTES, Buffers, InferRequest, Tensor
from shared.model_spec import TensorSpec
from shared.request_queue.api_end import RequestQueue
from shared.request_queue.keys import QueueKeys
from shared.request_queue.limits import Limits
from shared.settings import Settings
from shared.wire import packing
from shared.wire.client import connect
from shared.wire.packing import Command, pack

BLOB = spec("echo_UINT8", TensorSpec(name="x", datatype="UINT8", dims=(-1,))).model_copy(
    update={"max_batch_size": 0}
)
PATH = "/v2/models/echo_UINT8/infer"


def some_bytes(count: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(count)


def request_of(data: bytes) -> bytes:
    """Return a whole HTTP request whose one tensor is `data`, the answer wanted binary."""
    tensor = {
        "name": "x",
        "datatype": "UINT8",
        "shape": [len(data)],
        "parameters": {"binary_data_size": len(data)},
    }
    text = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    head = [
        f"POST {PATH} HTTP/1.1",
        "Host: localhost",
        f"Content-Length: {len(text) + len(data)}",
        f"{HEADER}: {len(text)}",
        "",
        "",
    ]
    return "\r\n".join(head).encode() + text + data


class Connection:
    """One connection, on which answers are read one by one."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def answer(self) -> bytes:
        """Read one 200, which must leave the connection open; return its one tensor."""
        response = HTTPResponse(self.socket)
        # One byte at a time while the headers are read: the next answer must stay unread.
        response.fp.close()
        response.fp = self.socket.makefile("rb", buffering=0)  # type: ignore[assignment]
        response.begin()
        body = b""
        while part := response.read(response.length):
            body += part
        assert response.status == 200, body
        return body[int(response.headers[HEADER]) :]

    def reset(self) -> None:
        """Close without a goodbye: the peer's next read fails."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


# Through a real gunicorn.


@pytest.fixture(scope="module")
def log_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("log") / "api.log"


@pytest.fixture(scope="module")
def port(redis_url: str, tmp_path_factory: pytest.TempPathFactory, log_file: Path) -> Iterator[int]:
    models = tmp_path_factory.mktemp("models")
    add_echo(models, "UINT8", dims="[-1]", max_batch_size=0)
    settings = Settings(
        redis_url=redis_url,
        key_prefix="large-bodies",
        models=str(models),
        port=free_port(),
        api_processes=1,
    )
    with running_worker(settings), running_gunicorn(settings, log_file):
        yield settings.port


@pytest.fixture
def connection(port: int) -> Iterator[Connection]:
    connection = Connection(port)
    yield connection
    connection.socket.close()


@pytest.mark.parametrize("count", [LARGE_BYTES - 1, LARGE_BYTES, 600_000, 20_000_000])
def test_a_large_request_is_answered_right(connection: Connection, count: int) -> None:
    data = some_bytes(count)
    connection.socket.sendall(request_of(data))

    assert connection.answer() == data


def test_a_small_request_in_the_same_segment_as_a_large_ones_end_is_answered(
    connection: Connection,
) -> None:
    large, small = some_bytes(100_000), some_bytes(100, seed=1)
    connection.socket.sendall(request_of(large) + request_of(small))

    assert connection.answer() == large
    assert connection.answer() == small


def test_many_large_and_small_requests_in_one_write_are_answered_in_order(
    connection: Connection,
) -> None:
    counts = [70_000, 10, 300_000, 65_536, 1, 1, 200_000]
    wanted = [some_bytes(count, seed) for seed, count in enumerate(counts)]
    connection.socket.sendall(b"".join(map(request_of, wanted)))

    assert [connection.answer() for _ in wanted] == wanted


def test_a_body_that_trickles_in_tiny_chunks_is_answered_right(connection: Connection) -> None:
    data = some_bytes(70_000)
    whole = request_of(data)
    for start in range(0, len(whole), 7):
        connection.socket.sendall(whole[start : start + 7])

    assert connection.answer() == data


@pytest.mark.parametrize("is_binary", [True, False])
@pytest.mark.parametrize("sent", [0, 8192, 300_000])
@pytest.mark.parametrize("how", ["closes", "shuts", "resets"])
def test_a_client_that_leaves_in_the_middle_is_no_error_of_ours(
    port: int, log_file: Path, connection: Connection, sent: int, how: str, is_binary: bool
) -> None:
    known = log_file.stat().st_size
    leaver = Connection(port)
    whole = request_of(some_bytes(600_000))
    if not is_binary:
        whole = whole.replace(HEADER.encode(), b"X-Other", 1)
    leaver.socket.sendall(whole[: whole.index(b"\r\n\r\n") + 4 + sent])
    if how == "closes":
        leaver.socket.close()
    elif how == "resets":
        leaver.reset()
    else:
        leaver.socket.shutdown(socket.SHUT_WR)
        assert b"HTTP/1.1 400 Bad Request" in leaver.socket.recv(65536)
        leaver.socket.close()

    # The process is one: it has read the end of the other connection when it answers this.
    data = some_bytes(100_000)
    connection.socket.sendall(request_of(data))
    assert connection.answer() == data
    with log_file.open("rb") as log:
        log.seek(known)
        assert log.read() == b""


# The buffers.


def body_of(length: int, ahead: bytes, sock: socket.socket) -> Body:
    """Return gunicorn's stream of a body of which `ahead` was read with the headers."""
    unreader = SocketUnreader(sock)
    unreader.unread(ahead)
    return Body(LengthReader(unreader, length))


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def test_a_tensor_stays_where_it_was_read_until_it_is_sent(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    data = some_bytes(100_000)
    whole = request_of(data).partition(b"\r\n\r\n")[2]
    pair[1].sendall(whole[5000:])

    raw = read_binary(body_of(len(whole), whole[:5000], pair[0]), len(whole), 10**9)
    body = parse_infer(raw, BLOB, len(whole) - len(data))
    encoded = InferRequest("id", 1, body.inputs).encode_large()

    assert isinstance(encoded, Buffers)
    sent = list(pack([("SET", "key", encoded)]))
    assert b"".join(sent).endswith(b"".join(encoded) + b"\r\n")
    for buffers in (encoded, sent):
        (large,) = [buffer for buffer in buffers if len(buffer) >= LARGE_BYTES]
        assert bytes(large) == data
        assert np.shares_memory(np.frombuffer(large, np.uint8), np.frombuffer(raw, np.uint8))


def test_a_large_body_takes_no_more_memory_than_its_own(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    data = some_bytes(4_000_000)
    whole = request_of(data).partition(b"\r\n\r\n")[2]

    # The best of three: what other tests' threads still do is counted too.
    assert min(_peak(pair, data, whole) for _ in range(3)) < 1.5 * len(whole)


def _peak(pair: tuple[socket.socket, socket.socket], data: bytes, whole: bytes) -> int:
    """Return the bytes that reading, parsing and packing a body took at most."""
    with ThreadPoolExecutor(1) as client:
        client.submit(pair[1].sendall, whole)
        tracemalloc.start()
        raw = read_binary(body_of(len(whole), b"", pair[0]), len(whole), 10**9)
        body = parse_infer(raw, BLOB, len(whole) - len(data))
        sent = list(pack([("SET", "key", InferRequest("id", 1, body.inputs).encode_large())]))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert sum(map(len, sent)) > len(data)
    return peak


def test_what_was_read_beyond_a_large_body_is_left_for_the_next_request(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    data = some_bytes(LARGE_BYTES)
    body = body_of(len(data), data + b"POST /next", pair[0])

    assert bytes(read_binary(body, len(data), 10**9)) == data
    assert body.reader.unreader.take_buffered() == b"POST /next"
    assert body.read() == b""


def test_a_body_that_ends_early_is_refused_and_its_connection_not_used_again(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    body = body_of(LARGE_BYTES, b"abc", pair[0])
    pair[1].close()

    with pytest.raises(BadRequest, match="ended after 3 of 65536 bytes"):
        read_binary(body, LARGE_BYTES, 10**9)
    assert body.failed


def test_a_small_body_is_read_by_gunicorn_itself(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    raw = read_binary(body_of(3, b"abc", pair[0]), 3, 10**9)

    assert type(raw) is bytes and raw == b"abc"


def test_a_request_in_several_buffers_is_the_same_message_as_in_one() -> None:
    large = Tensor("x", "UINT8", (LARGE_BYTES,), memoryview(some_bytes(LARGE_BYTES)))
    small = Tensor("y", "INT16", (2, 1), b"\1\0\2\0", pixels=True)
    for inputs in [(large,), (small, large), (large, small, large._replace(name="z"))]:
        request = InferRequest("id", 1, inputs, ("a", "b"), parameters={"k": 0.5, "n": 7})

        large_form = request.encode_large()

        assert isinstance(large_form, Buffers)
        assert InferRequest.decode("id", 1, b"".join(large_form)) == InferRequest.decode(
            "id", 1, request.encode()
        )


# Redis goes away while the pieces are sent.


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnValkey]:
    valkey = OwnValkey(tmp_path_factory.mktemp("v"))
    yield valkey
    valkey.server.stop()


@pytest.fixture(scope="module")
def queue(valkey: OwnValkey, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RequestQueue]:
    models = tmp_path_factory.mktemp("models")
    add_echo(models, "UINT8", dims="[-1]", max_batch_size=0)
    settings = Settings(redis_url=valkey.server.url, models=str(models))
    with running_worker(settings):
        keys = QueueKeys(settings.key_prefix, BLOB.key)
        yield RequestQueue(connect(settings.redis_url), keys, Limits(100))


@pytest.mark.parametrize("place", [0, 1, 2, "behind"])
def test_a_large_request_outlives_redis_while_it_is_sent(
    queue: RequestQueue, valkey: OwnValkey, monkeypatch: pytest.MonkeyPatch, place: Any
) -> None:
    restarts = []

    def restart() -> None:
        valkey.kill()
        valkey.start_again()
        restarts.append(place)

    in_buffers = packing.in_buffers

    def interrupted(commands: Iterable[Command]) -> Iterator[Any]:
        for index, piece in enumerate(in_buffers(commands)):
            if index == place and not restarts:
                restart()
            yield piece
        if place == "behind" and not restarts:
            restart()

    tensors = [
        Tensor.of("x", np.frombuffer(some_bytes(3 * LARGE_BYTES, seed), np.uint8))
        for seed in (0, 1)
    ]
    # A first one opens the connections, so that the second finds one that Redis leaves.
    assert answered(queue, tensors[0]) == tensors[0].data
    monkeypatch.setattr(packing, "in_buffers", interrupted)

    assert answered(queue, tensors[1]) == tensors[1].data
    assert restarts == [place]


def answered(queue: RequestQueue, tensor: Tensor) -> bytes | memoryview:
    request = InferRequest(queue.new_id(), 1, (tensor,), (), 30.0)
    waiting = queue.push(request)
    wait_until(waiting.done.is_set, 30, "the answer")
    return waiting.wait().outputs[0].data
