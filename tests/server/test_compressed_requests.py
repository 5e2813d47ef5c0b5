"""Compressed bodies are opened on every route, in bounded memory, and refused when damaged."""

from __future__ import annotations

import gzip
import json
import re
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from answers import answer, refusal
from doubling_server import (
    BODIES,
    DOUBLED,
    INFER,
    PREDICT,
    V1,
    Server,
    doubling_server,
    numbers,
)
from flask.testing import FlaskClient
from wire import post, send

from api.server.compression import decompress
from samples.digits.pictures import write_pictures
from shared.errors import BadRequest, PayloadTooLarge

LIMIT = 32 * 2**20


@pytest.fixture(scope="module")
def server(redis_url: str) -> Iterator[Server]:
    with doubling_server(redis_url, LIMIT) as server:
        yield server


@pytest.fixture
def port(server: Server) -> int:
    return server.port


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


PACKERS = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "GZip": gzip.compress,
    "deflate": zlib.compress,
    "deflate ": raw_deflate,
    "identity": bytes,
}


def bomb(total: int) -> bytes:
    """Return gzip data that would open to `total` zeros (its checksum is never reached)."""
    packer = zlib.compressobj(9, wbits=31)
    start = packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)
    again = packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return start + again * (total // 2**20 - 1) + packer.flush()


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("encoding", PACKERS)
def test_a_compressed_body_is_opened(port: int, path: str, encoding: str) -> None:
    packed = PACKERS[encoding](json.dumps(BODIES[path]).encode())

    assert numbers(answer(post(port, path, packed, {"Content-Encoding": encoding}))) == DOUBLED


def test_a_compressed_chunked_body_is_opened(port: int) -> None:
    packed = gzip.compress(json.dumps(BODIES[INFER]).encode())
    chunk = b"%x\r\n%s\r\n0\r\n\r\n" % (len(packed), packed)

    headers = {"Content-Encoding": "gzip", "Transfer-Encoding": "chunked"}
    response = post(port, INFER, chunk, headers)

    assert numbers(answer(response)) == DOUBLED


def test_a_compressed_form_is_opened(client: FlaskClient, tmp_path: Path) -> None:
    picture = write_pictures(tmp_path)[7].read_bytes()
    part = b'--xyz\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n'
    # Without the repetition gzip would leave the form as it is inside its own data.
    content = 2 * (part + picture + b"\r\n") + b"--xyz--\r\n"
    assert part not in gzip.compress(content)
    multipart = {"Content-Type": "multipart/form-data; boundary=xyz"}

    plain = client.post("/predict/digits", data=content, headers=multipart)
    packed = client.post(
        "/predict/digits",
        data=gzip.compress(content),
        headers=multipart | {"Content-Encoding": "gzip"},
    )

    for response in (plain, packed):
        assert [row["class"] for row in answer(response)["predictions"]] == [7, 7]


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, gzip", "gzip,deflate", "", "compress"])
def test_other_encodings_are_refused(port: int, encoding: str) -> None:
    response = post(port, INFER, BODIES[INFER], {"Content-Encoding": encoding})

    assert "gzip, deflate" in refusal(response, 415, "unsupported_encoding")


DAMAGED = {
    "nothing": (b"", "cut off"),
    "no gzip": (b'{"inputs": []}', "is not gzip data"),
    "cut off": (gzip.compress(b"x" * 1000)[:-9], "cut off"),
    "without its checksum": (gzip.compress(b"x" * 1000)[:-1], "cut off"),
    "a bad checksum": (gzip.compress(b"x" * 1000)[:-8] + bytes(8), "damaged"),
    "more behind it": (gzip.compress(b"{}") + b"more", "stands behind"),
    "twice": (gzip.compress(b"{") + gzip.compress(b"}"), "stands behind"),
}


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_bodies_are_refused(port: int, path: str, kind: str) -> None:
    body, said = DAMAGED[kind]

    assert said in refusal(post(port, path, body, {"Content-Encoding": "gzip"}))


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "deflate "])
def test_no_damage_of_one_byte_goes_unnoticed_or_unanswered(encoding: str) -> None:
    packed = PACKERS[encoding](b"some bytes, and then some bytes again")
    for position in range(len(packed)):
        changed = bytearray(packed)
        changed[position] ^= 0xFF
        try:
            opened = decompress(bytes(changed), encoding, 1000)
        except BadRequest:
            continue
        # gzip's header has fields that change nothing, raw deflate has no checksum.
        assert position < 10 or encoding == "deflate ", (position, opened)


def test_a_body_may_open_to_the_limit_and_no_further() -> None:
    for encoding, packed in (("gzip", gzip.compress), ("deflate", raw_deflate)):
        assert decompress(packed(bytes(1000)), encoding, 1000) == bytes(1000)
        with pytest.raises(PayloadTooLarge, match="more than 999 bytes"):
            decompress(packed(bytes(1000)), encoding, 999)


def test_what_opens_to_more_than_the_limit_is_refused(port: int) -> None:
    numbers = np.random.default_rng(0).integers(0, 10, LIMIT + 1, np.uint8) + ord("0")
    packed = gzip.compress(numbers.tobytes(), 1)

    for path, limit in ((INFER, 2**24), (PREDICT, LIMIT), (V1, 2**24)):
        response = post(port, path, packed, {"Content-Encoding": "gzip"})
        message = refusal(response, 413, "payload_too_large")
        assert message == f"the body opens to more than {limit} bytes"


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "deflate "])
def test_a_body_opens_to_a_hundred_times_its_size_and_no_further(encoding: str) -> None:
    for size in (2**20, 2**20 + 1, 3 * 2**20):
        packed = PACKERS[encoding](bytes(size))
        if size <= 2**20:
            assert decompress(packed, encoding, 2**26) == bytes(size)
            continue
        with pytest.raises(PayloadTooLarge, match=f"more than 100 times its {len(packed)} bytes"):
            decompress(packed, encoding, 2**26)
    some = np.random.default_rng(0).bytes(40_000)
    packed = PACKERS[encoding](some + bytes(80 * len(some)))
    assert len(decompress(packed, encoding, 2**26)) == 81 * len(some)


def test_a_compressed_body_above_the_limit_is_refused_before_it_is_read(port: int) -> None:
    headers = {"Content-Encoding": "gzip", "Content-Length": "10000000000"}

    refusal(send(port, "POST", INFER, None, headers), 413, "payload_too_large")


def memory_bytes(pid: int, field: str) -> int:
    found = re.search(
        rf"^{field}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE
    )
    assert found
    return 1024 * int(found[1])


@pytest.mark.parametrize("total", [2**30, 10 * 2**30])
def test_a_bomb_is_refused_quickly_and_in_bounded_memory(server: Server, total: int) -> None:
    packed = bomb(total)
    assert total / len(packed) > 1000 and len(packed) < LIMIT
    before = memory_bytes(server.pid, "VmRSS")

    began = time.monotonic()
    response = post(server.port, PREDICT, packed, {"Content-Encoding": "gzip"})

    assert refusal(response, 413, "payload_too_large")
    assert time.monotonic() - began < 6.0
    grown = memory_bytes(server.pid, "VmHWM") - before
    assert grown < 2 * len(packed) + 3 * LIMIT, f"{grown / 2**20:.0f} MiB"
