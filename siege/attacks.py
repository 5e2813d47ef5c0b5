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

from siege import bodies
from siege.bodies import LARGEST, MIB, Body, packed

INFER, DIGITS, WORDS = "/v2/models/tiny/infer", "/predict/digits", "/predict/sentiment"
V1, IDS = "/v1/models/tiny:predict", "/v2/models/sentiment/infer"
PACKED_BYTES = 14 * MIB
"""Below FERRY_MAX_JSON_BYTES once opened."""
TIMEOUT_SECONDS = 60.0
Outcomes = Counter[str]
Strike = Callable[[int, float], Outcomes]


@dataclass(frozen=True)
class Attack:
    """One row: `strike(port, seconds)` attacks for so long; a body opens to `opened_bytes`."""

    name: str
    strike: Strike
    opened_bytes: int = 0


def posted(name: str, path: str, body: Body | bytes, clients: int = 2) -> Attack:
    """Return an attack that posts one body again and again."""
    whole = body if isinstance(body, Body) else Body(body)
    return Attack(name, partial(post, path, whole, clients), whole.size)


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
    head = f"POST {INFER} HTTP/1.1\r\nHost: ferry\r\nTransfer-Encoding: chunked\r\n\r\n"
    until, many = time.monotonic() + seconds, b"1\r\n \r\n" * 10_000
    outcomes = Outcomes()
    with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_SECONDS) as one:
        one.sendall(head.encode())
        with suppress(OSError):
            while time.monotonic() < until:
                one.sendall(many)
                outcomes["sent"] += 10_000
    return outcomes


def _head(path: str, length: int) -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: ferry\r\nContent-Length: {length}\r\n\r\n".encode()


def attacks() -> list[Attack]:
    """Make all attacks; their bodies take a while and some hundred megabytes."""
    json_bytes = PACKED_BYTES
    shape = b'{"name":"INPUT__0","datatype":"FP32","data":[1],"shape":['
    data = b'{"name":"INPUT__0","datatype":"FP32","shape":[1,16],"data":['
    return [
        posted("jpeg-fill", DIGITS, packed(bodies.stuffed("JPEG", 2, b"\xff"))),
        posted("jpeg-fill-plain", DIGITS, bodies.stuffed("JPEG", 2, b"\xff")),
        posted("jpeg-segments", DIGITS, bodies.stuffed("JPEG", 2, b"\xff\xfe\0\2")),
        posted("jpeg-scans", DIGITS, bodies.many_scans()),
        posted("png-chunks", DIGITS, bodies.stuffed("PNG", 33, bodies.png_chunk())),
        posted("ppm-comments", DIGITS, bodies.stuffed("PPM", 3, b"#\n")),
        posted("gif-junk", DIGITS, bodies.stuffed("GIF", 13, b"\x55")),
        posted("tiff-tags", DIGITS, bodies.tiff_tags()),
        posted("png-16-bit", DIGITS, bodies.picture("PNG", 7000, "I;16"), clients=1),
        posted("lists-packed", INFER, packed(bodies.v2(bodies.repeated(b"[]", LARGEST)))),
        posted("lists", INFER, bodies.v2(bodies.repeated(b"[]", json_bytes))),
        posted("inputs", INFER, bodies.v2(bodies.repeated(b'{"name":"a"}', json_bytes))),
        posted(
            "outputs", INFER,
            bodies.tiny(b',"outputs":[' + bodies.repeated(b'{"name":"a"}', json_bytes) + b"]"),
        ),
        posted(
            "parameters", INFER,
            bodies.tiny(b',"parameters":{' + bodies.numbered(json_bytes) + b"}"),
        ),
        posted("shape", INFER, bodies.v2(shape + bodies.repeated(b"1", json_bytes) + b"]}")),
        posted("data", INFER, bodies.v2(data + bodies.repeated(b"0", json_bytes) + b"]}")),
        posted("id", INFER, bodies.tiny(b',"id":"' + b"a" * json_bytes + b'"')),
        posted("name", INFER, bodies.v2(b'{"name":"' + b"a" * json_bytes + b'"}')),
        posted("v1-rows", V1, b'{"instances":[' + bodies.repeated(b"{}", json_bytes) + b"]}"),
        posted("too-large", INFER, bodies.tiny(b',"id":"' + b"a" * LARGEST + b'"')),
        posted("token-ids", IDS, bodies.token_ids(32, 100_000)),
        posted("texts", WORDS, bodies.texts(32, 20_000)),
        Attack("slow-bodies", partial(hold, 200, _head(INFER, 100_000) + b"{")),
        Attack("idle", partial(hold, 1100, b"")),
        Attack("tiny-chunks", tiny_chunks),
        posted("slow-model", WORDS, bodies.texts(32, 400), clients=850),
    ]  # fmt: skip


NAMES = (
    "jpeg-fill", "jpeg-fill-plain", "jpeg-segments", "jpeg-scans", "png-chunks", "ppm-comments",
    "gif-junk", "tiff-tags", "png-16-bit", "lists-packed", "lists", "inputs", "outputs",
    "parameters", "shape", "data", "id", "name", "v1-rows", "too-large", "token-ids", "texts",
    "slow-bodies", "idle", "tiny-chunks", "slow-model",
)  # fmt: skip
"""Their names, without the bodies."""
