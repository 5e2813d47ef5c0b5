"""Bodies that cost more than they look: heads of a million pieces, lists of a million lists."""

from __future__ import annotations

import gzip
import io
import json
import struct
import zlib
from random import Random
from typing import NamedTuple

import numpy as np
from PIL import Image

from api.payloads.binary_tensors import HEADER

MIB = 2**20
LARGEST = 60 * MIB
"""Just below FERRY_MAX_BODY_BYTES."""
PACKED = (("Content-Encoding", "gzip"),)


class Body(NamedTuple):
    """A body, its headers, and its size once it is opened."""

    data: bytes
    headers: tuple[tuple[str, str], ...] = ()
    opened_bytes: int = 0

    @property
    def size(self) -> int:
        """Return the size once it is opened."""
        return self.opened_bytes or len(self.data)


def packed(data: bytes) -> Body:
    """Return a body that comes compressed."""
    return Body(gzip.compress(data, 9), PACKED, len(data))


def picture(kind: str, side: int = 8, mode: str = "RGB", **options: object) -> bytes:
    """Return a picture file of one colour."""
    buffer = io.BytesIO()
    Image.new(mode, (side, side)).save(buffer, kind, **options)
    return buffer.getvalue()


def stuffed(kind: str, at: int, piece: bytes, size: int = LARGEST) -> bytes:
    """Return a picture file of 8 x 8 pixels with `size` bytes of pieces in its head."""
    data = picture(kind)
    return data[:at] + piece * (size // len(piece)) + data[at:]


def png_chunk() -> bytes:
    """Return an empty chunk that no reader knows."""
    return struct.pack(">I", 0) + b"abCd" + struct.pack(">I", zlib.crc32(b"abCd"))


def many_scans() -> bytes:
    """Return a progressive JPEG of 4 million pixels whose last scan comes a thousand times."""
    data = picture("JPEG", 2000, progressive=True)
    at = data.rindex(b"\xff\xda")
    return data[:at] + data[at:-2] * 1000 + data[-2:]


def tiff_tags() -> bytes:
    """Return a TIFF with as many tags as there can be."""
    tags = b"".join(struct.pack("<HHII", tag, 3, 1, 1) for tag in range(65_535))
    return b"II*\0\x08\0\0\0" + struct.pack("<H", 65_535) + tags


def v2(inputs: bytes, more: bytes = b"") -> bytes:
    """Return a v2 body around JSON that is written already."""
    return b'{"inputs":[' + inputs + b"]" + more + b"}"


def tiny(more: bytes = b"") -> bytes:
    """Return a sound request to `tiny`, and what else it says."""
    tensor = {"name": "INPUT__0", "shape": [1, 16], "datatype": "FP32", "data": [0.0] * 16}
    return v2(json.dumps(tensor).encode(), more)


def repeated(piece: bytes, size: int) -> bytes:
    """Return so many bytes of a piece, separated by commas."""
    return b",".join([piece] * (size // (len(piece) + 1)))


def numbered(size: int) -> bytes:
    """Return the members of an object of numbers, each under a name of its own."""
    return b",".join(b'"%d":1' % number for number in range(size // 11))


def token_ids(rows: int, length: int) -> Body:
    """Return a binary request to `sentiment` of more tokens than it has positions."""
    each = np.ones((rows, length), np.int64).tobytes()
    inputs = [
        {
            "name": name, "shape": [rows, length], "datatype": "INT64",
            "parameters": {"binary_data_size": len(each)},
        }
        for name in ("input_ids", "attention_mask")
    ]  # fmt: skip
    head = json.dumps({"inputs": inputs}).encode()
    return Body(head + 2 * each, ((HEADER, str(len(head))),))


def texts(rows: int, length: int) -> bytes:
    """Return a body of texts in which no word comes twice."""
    random = Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz "
    found = ["a" + "".join(random.choices(letters, k=length)) for _ in range(rows)]
    return json.dumps({"text": found}).encode()


def embeddings(count: int, length: int) -> bytes:
    """Return a request for the vectors of long texts, as OpenAI's clients ask."""
    return json.dumps({"model": "sentiment", "input": ["a " * (length // 2)] * count}).encode()


def embeddings_ids(count: int, length: int) -> bytes:
    """Return a request for the vectors of lists of token ids."""
    return json.dumps({"model": "sentiment", "input": [[7] * length] * count}).encode()


def upload(size: int) -> Body:
    """Return a form with the rows of a job, in a file without an end of a line."""
    head = (
        b'--xyz\r\nContent-Disposition: form-data; name="model"\r\n\r\ntiny\r\n'
        b'--xyz\r\nContent-Disposition: form-data; name="input"; filename="a.csv"\r\n\r\n'
    )
    kind = (("Content-Type", "multipart/form-data; boundary=xyz"),)
    return Body(head + b"1," * (size // 2) + b"\r\n--xyz--\r\n", kind)
