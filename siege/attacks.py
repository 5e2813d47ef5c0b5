"""What is sent, and how. A new attack is a new line here."""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from http.client import HTTPConnection, HTTPException
from threading import Thread

from siege import bodies, rpc
from siege.bodies import LARGEST, MIB, Body, packed

INFER, DIGITS, WORDS = "/v2/models/tiny/infer", "/predict/digits", "/predict/sentiment"
V1, IDS = "/v1/models/tiny:predict", "/v2/models/sentiment/infer"
EMBEDDINGS, JOB = "/v1/embeddings", "/jobs/predict"
PACKED_BYTES = 14 * MIB
"""Below FERRY_MAX_JSON_BYTES once opened."""
TIMEOUT_SECONDS = 60.0
Outcomes = Counter[str]
Strike = Callable[[int, float], Outcomes]


@dataclass(frozen=True)
class Attack:
    """One row: what `make` returns attacks a port for some seconds, with so many bytes at a time.

    Bodies are counted once they are opened; making them takes a while. The port is gRPC's, and so
    is the honest client, where it is `over_grpc`.
    """

    name: str
    make: Callable[[], tuple[Strike, int]]
    over_grpc: bool = False


def posted(name: str, path: str, body: Callable[[], Body | bytes], clients: int = 2) -> Attack:
    """Return an attack that posts one body again and again."""

    def make() -> tuple[Strike, int]:
        made = body()
        whole = made if isinstance(made, Body) else Body(made)
        return partial(post, path, whole, clients), whole.size * clients

    return Attack(name, make)


def without_body(name: str, strike: Strike, *, over_grpc: bool = False) -> Attack:
    """Return an attack that needs none."""
    return Attack(name, lambda: (strike, 0), over_grpc)


def post(path: str, body: Body, clients: int, port: int, seconds: float) -> Outcomes:
    """Post from several connections for so long, or once; return what came of it."""
    outcomes, until = Outcomes(), time.monotonic() + seconds

    def client() -> None:
        connection = HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_SECONDS)
        while True:
            try:
                connection.request("POST", path, body.data, dict(body.headers))
                response = connection.getresponse()
                answer = response.read()
                outcomes[str(response.status)] += 1
                if len(answer) > MIB:
                    outcomes["large answers"] += 1
            except (OSError, HTTPException) as error:
                connection.close()
                outcomes[type(error).__name__] += 1
            if time.monotonic() > until:
                break
        connection.close()

    threads = [Thread(target=client, daemon=True) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds + TIMEOUT_SECONDS)
    return outcomes


def hold(count: int, begin: bytes, port: int, seconds: float) -> Outcomes:
    """Hold connections on which a request was begun, and goes on by a byte a second."""
    outcomes, until = Outcomes(), time.monotonic() + seconds
    with ExitStack() as stack:
        opened = []
        for _ in range(count):
            with suppress(OSError):
                one = socket.create_connection(("127.0.0.1", port), timeout=5)
                opened.append(stack.enter_context(one))
                one.sendall(begin)
        outcomes["opened"] = len(opened)
        while time.monotonic() < until:
            time.sleep(min(1.0, max(0.0, until - time.monotonic())))
            for one in opened:
                with suppress(OSError):
                    one.send(b" ") if begin else None
    return outcomes


def tiny_chunks(port: int, seconds: float) -> Outcomes:
    """Send a body in chunks of one byte, as fast as they are taken."""
    head = f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    until, many = time.monotonic() + seconds, b"1\r\n \r\n" * 10_000
    outcomes = Outcomes()
    with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_SECONDS) as one:
        one.sendall(head.encode())
        with suppress(OSError):
            while time.monotonic() < until:
                one.sendall(many)
                outcomes["sent"] += 10_000
    return outcomes


def one_chunk(port: int, seconds: float) -> Outcomes:
    """Send the largest bodies, each in one chunk, of which nothing is JSON."""
    head = f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"
    until, outcomes = time.monotonic() + seconds, Outcomes()
    chunk = b"%x\r\n%b\r\n0\r\n\r\n" % (LARGEST, bytes(LARGEST))
    while time.monotonic() < until:
        with (
            socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_SECONDS) as one,
            suppress(OSError),
        ):
            one.sendall(f"{head}Inference-Header-Content-Length: 0\r\n\r\n".encode() + chunk)
            outcomes[one.recv(12)[9:].decode()] += 1
    return outcomes


def read_nothing(path: str, port: int, seconds: float) -> Outcomes:
    """Ask a hundred times on each of many connections, and take none of the answers."""
    outcomes, until = Outcomes(), time.monotonic() + seconds
    many = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode() * 100
    with ExitStack() as stack:
        opened = []
        for _ in range(100):
            with suppress(OSError):
                one = socket.create_connection(("127.0.0.1", port), timeout=5)
                opened.append(stack.enter_context(one))
                one.sendall(many)
        outcomes["opened"] = len(opened)
        time.sleep(max(0.0, until - time.monotonic()))
    return outcomes


def _head(path: str, length: int) -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n".encode()


def attacks() -> list[Attack]:
    """Return all attacks."""
    return [
        *_pictures(),
        *_json(),
        posted("token-ids", IDS, lambda: bodies.token_ids(32, 100_000)),
        posted("texts", WORDS, lambda: bodies.texts(32, 20_000)),
        posted("embeddings", EMBEDDINGS, lambda: bodies.embeddings(2048, 1900)),
        posted("embeddings-ids", EMBEDDINGS, lambda: bodies.embeddings_ids(2048, 600)),
        posted("job-upload", JOB, lambda: bodies.upload(LARGEST), clients=2),
        without_body("slow-bodies", partial(hold, 200, _head(INFER, 100_000) + b"{")),
        without_body("idle", partial(hold, 1100, b"")),
        without_body("tiny-chunks", tiny_chunks),
        Attack("one-chunk", lambda: (one_chunk, LARGEST)),
        without_body("slow-readers", partial(read_nothing, "/openapi.json")),
        posted("slow-model", WORDS, lambda: bodies.texts(32, 400), clients=850),
        *_over_grpc(),
    ]  # fmt: skip


def _json() -> list[Attack]:
    size = PACKED_BYTES
    shape = b'{"name":"INPUT__0","datatype":"FP32","data":[1],"shape":['
    data = b'{"name":"INPUT__0","datatype":"FP32","shape":[1,16],"data":['
    return [
        posted("lists-packed", INFER, lambda: packed(bodies.v2(bodies.repeated(b"[]", LARGEST)))),
        posted("lists", INFER, lambda: bodies.v2(bodies.repeated(b"[]", size))),
        posted("inputs", INFER, lambda: bodies.v2(bodies.repeated(b'{"name":"a"}', size))),
        posted(
            "outputs", INFER,
            lambda: bodies.tiny(b',"outputs":[' + bodies.repeated(b'{"name":"a"}', size) + b"]"),
        ),
        posted(
            "parameters", INFER,
            lambda: bodies.tiny(b',"parameters":{' + bodies.numbered(size) + b"}"),
        ),
        posted("shape", INFER, lambda: bodies.v2(shape + bodies.repeated(b"1", size) + b"]}")),
        posted("data", INFER, lambda: bodies.v2(data + bodies.repeated(b"0", size) + b"]}")),
        posted("id", INFER, lambda: bodies.tiny(b',"id":"' + b"a" * size + b'"')),
        posted("name", INFER, lambda: bodies.v2(b'{"name":"' + b"a" * size + b'"}')),
        posted("v1-rows", V1, lambda: b'{"instances":[' + bodies.repeated(b"{}", size) + b"]}"),
        posted("too-large", INFER, lambda: bodies.tiny(b',"id":"' + b"a" * LARGEST + b'"')),
    ]  # fmt: skip


def _over_grpc() -> list[Attack]:
    return [
        *(
            Attack(name, partial(rpc.calling, message), over_grpc=True)
            for name, message in rpc.MESSAGES.items()
        ),
        without_body("grpc-held", partial(rpc.hold, "ModelInfer", 2000), over_grpc=True),
        without_body("grpc-streams", partial(rpc.hold, "ModelStreamInfer", 2000), over_grpc=True),
        without_body("grpc-slow-readers", rpc.read_nothing, over_grpc=True),
    ]


def _pictures() -> list[Attack]:
    return [
        posted("jpeg-fill", DIGITS, lambda: packed(bodies.stuffed("JPEG", 2, b"\xff"))),
        posted("jpeg-fill-plain", DIGITS, lambda: bodies.stuffed("JPEG", 2, b"\xff")),
        posted("jpeg-segments", DIGITS, lambda: bodies.stuffed("JPEG", 2, b"\xff\xfe\0\2")),
        posted("jpeg-scans", DIGITS, bodies.many_scans),
        posted("png-chunks", DIGITS, lambda: bodies.stuffed("PNG", 33, bodies.png_chunk())),
        posted("ppm-comments", DIGITS, lambda: bodies.stuffed("PPM", 3, b"#\n")),
        posted("gif-junk", DIGITS, lambda: bodies.stuffed("GIF", 13, b"\x55")),
        posted("tiff-tags", DIGITS, bodies.tiff_tags),
        posted("png-16-bit", DIGITS, lambda: bodies.picture("PNG", 7000, "I;16"), clients=1),
    ]  # fmt: skip


NAMES = tuple(each.name for each in attacks())
