"""Answers are packed for who asks for it, as they ask for it, and left as they are for others."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pytest
from answers import answer
from doubling_server import BODIES, DOUBLED, ROW, WIDTH, doubling_server, numbers
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
from wire import post, send

from api.server.compression import Coding, Compressed, chosen, decompress

OPENERS = {"gzip": gzip.decompress, "deflate": zlib.decompress}


@pytest.fixture(scope="module")
def port(redis_url: str) -> Iterator[int]:
    with doubling_server(redis_url, 2**20) as server:
        yield server.port


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("encoding", OPENERS)
def test_an_answer_is_packed_for_who_asks(port: int, path: str, encoding: str) -> None:
    response = post(port, path, BODIES[path], {"Accept-Encoding": encoding})

    assert response.status_code == 200
    assert response.headers["Content-Encoding"] == encoding
    assert response.headers["Vary"] == "Accept-Encoding"
    assert int(response.headers["Content-Length"]) == len(response.data) < 12_000
    assert response.headers["Server-Timing"].startswith("queue;dur=")
    assert numbers(json.loads(OPENERS[encoding](response.data))) == DOUBLED


@pytest.mark.parametrize("accept", ["identity", "br", "gzip;q=0", "", "*;q=0"])
@pytest.mark.parametrize("path", BODIES)
def test_an_answer_is_left_as_it_is_for_who_does_not(port: int, path: str, accept: str) -> None:
    response = post(port, path, BODIES[path], {"Accept-Encoding": accept})

    assert "Content-Encoding" not in response.headers
    assert numbers(answer(response)) == DOUBLED


@pytest.mark.parametrize("path", ["/v2", "/v2/models/nothing/infer"])
def test_a_small_answer_is_packed_only_for_who_takes_no_other(port: int, path: str) -> None:
    method = "GET" if path == "/v2" else "POST"

    usual = send(port, method, path, headers={"Accept-Encoding": "gzip"})
    strict = send(port, method, path, headers={"Accept-Encoding": "gzip, identity;q=0"})

    assert "Content-Encoding" not in usual.headers
    assert strict.headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(strict.data) == usual.data


def test_head_has_no_body_to_pack(port: int) -> None:
    response = send(port, "HEAD", "/v2", headers={"Accept-Encoding": "gzip, identity;q=0"})

    assert response.status_code == 200
    assert "Content-Encoding" not in response.headers
    assert response.data == b""


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        ("gzip", Coding("gzip", False)),
        ("x-gzip", Coding("gzip", False)),
        ("GZIP", Coding("gzip", False)),
        ("deflate", Coding("deflate", False)),
        ("gzip, deflate, br", Coding("gzip", False)),
        ("deflate, gzip", Coding("gzip", False)),
        ("gzip;q=0.5, deflate;q=0.8", Coding("deflate", False)),
        ("gzip ; q=0.001 , deflate;q=0", Coding("gzip", False)),
        ("gzip;q=1.0,identity;q=1", Coding("gzip", False)),
        ("gzip;q=0.5, identity", None),
        ("gzip;q=0.5, identity;q=0.4", Coding("gzip", False)),
        ("*", Coding("gzip", False)),
        ("gzip;q=0, *", Coding("deflate", False)),
        ("gzip;q=0, *;q=0.5", Coding("deflate", False)),
        ("gzip, *;q=0", Coding("gzip", True)),
        ("deflate, identity;q=0", Coding("deflate", True)),
        ("identity;q=0", None),
        ("*;q=0", None),
        ("br, identity;q=0", None),
        ("identity", None),
        ("", None),
        ("gzip;q=0", None),
        ("gzip;q=0.000", None),
        ("gzip;q=x", None),
        ("gzip;q=-1", None),
        ("gzip;q=2", None),
        ("gzip;q=1.9", Coding("gzip", False)),
        ("gzip;level=1", None),
        (";,=;q", None),
    ],
)
def test_weights_decide(accept: str, wanted: Coding | None) -> None:
    assert chosen(accept) == wanted


class Answered:
    """An application's answer, which wants to be closed."""

    def __init__(self, *headers: tuple[str, str], body: bytes = b"", written: bytes = b"") -> None:
        self.headers = list(headers)
        self.body = body
        self.written = written
        self.closed = 0

    def __call__(self, environ: Any, start_response: Any) -> Iterable[bytes]:
        write = start_response("200 OK", self.headers)
        if self.written:
            write(self.written)
        return self

    def __iter__(self) -> Iterator[bytes]:
        yield from (self.body[:10], self.body[10:])

    def close(self) -> None:
        self.closed += 1


def through(app: Answered, accept: str = "gzip") -> tuple[dict[str, str], bytes]:
    """Return headers and body as they come out of the middleware."""
    seen: list[Any] = []
    environ = {"REQUEST_METHOD": "POST", "PATH_INFO": "/predict", "HTTP_ACCEPT_ENCODING": accept}
    written: list[bytes] = []

    def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
        seen.append((status, dict(headers)))
        return written.append

    answered: Any = Compressed(app)(environ, start_response)
    body = b"".join(written) + b"".join(answered)
    if hasattr(answered, "close"):
        answered.close()
    ((status, headers),) = seen
    assert status == "200 OK"
    assert app.closed == 1
    return headers, body


def test_what_is_written_stands_before_what_is_returned() -> None:
    app = Answered(("Content-Length", "3000"), body=b"b" * 2000, written=b"a" * 1000)

    headers, body = through(app)

    assert headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(body) == b"a" * 1000 + b"b" * 2000


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("content-length", "3000"), ("content-encoding", "br")],
        [("Content-Length", "3000"), ("Content-Range", "bytes 0-2999/9000")],
        [("Content-Length", "1024")],
        [("Content-Length", "0")],
    ],
)
def test_streams_parts_and_small_or_packed_bodies_stay_as_they_are(
    headers: list[tuple[str, str]],
) -> None:
    app = Answered(*headers, body=b"b" * 3000)

    assert through(app) == (dict(headers), b"b" * 3000)


def test_what_packing_makes_no_smaller_stays_as_it_is() -> None:
    noise = np.random.default_rng(0).bytes(3000)
    app = Answered(("Content-Length", "3000"), body=noise)

    assert through(app) == ({"Content-Length": "3000"}, noise)
    headers, body = through(Answered(("Content-Length", "3000"), body=noise), "gzip, *;q=0")
    assert headers["Content-Length"] == str(len(body)) and gzip.decompress(body) == noise


def test_a_large_body_is_packed_in_slices_that_make_one_stream() -> None:
    data = np.random.default_rng(0).integers(0, 9, 2**20, np.uint8).tobytes()

    headers, body = through(Answered(("Content-Length", str(len(data))), body=data), "deflate")

    assert headers["Content-Encoding"] == "deflate"
    assert zlib.decompress(body) == data
    assert decompress(body, "deflate", len(data)) == data


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("request_algorithm", [None, "gzip", "deflate"])
@pytest.mark.parametrize("response_algorithm", [None, "gzip", "deflate"])
def test_tritonclient_compresses_both_ways(
    port: int, binary: bool, request_algorithm: str | None, response_algorithm: str | None
) -> None:
    tensor = InferInput("x", [2, WIDTH], "FP32")
    tensor.set_data_from_numpy(np.array([ROW, DOUBLED], np.float32), binary_data=binary)
    client = InferenceServerClient(f"127.0.0.1:{port}")

    result = client.infer(
        "fake",
        [tensor],
        outputs=[InferRequestedOutput("y", binary_data=binary)],
        request_compression_algorithm=request_algorithm,
        response_compression_algorithm=response_algorithm,
    )
    client.close()

    assert result.as_numpy("y").tolist() == [DOUBLED, [4 * value for value in ROW]]
