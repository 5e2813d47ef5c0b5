"""Pictures written byte by byte: what Pillow reads but does not write."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 6, 4
_FORMATS = {3: "H", 4: "I", 11: "f"}  # TIFF's SHORT, LONG and FLOAT


def encoded(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def filled(value: Any, datatype: str) -> bytes:
    """Return the samples of a picture of 6 x 4 pixels that are all alike."""
    return np.tile(np.array(value, datatype), WIDTH * HEIGHT).tobytes()


def png(depth: int, colour: int, samples: bytes, transparent: bytes = b"") -> bytes:
    """Return a PNG of 6 x 4 pixels, with a tRNS chunk if there is anything `transparent`."""
    row = len(samples) // HEIGHT
    rows = b"".join(b"\0" + samples[n * row :][:row] for n in range(HEIGHT))
    head = struct.pack(">IIBBBBB", WIDTH, HEIGHT, depth, colour, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    if transparent:
        chunks.insert(1, (b"tRNS", transparent))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )


def tiff(
    samples: bytes, *, bits: int, order: str = "<", bands: int = 1, **tags: tuple[int, Any]
) -> bytes:
    """Return a TIFF of 6 x 4 pixels. `tags` are t<number>: (type, value), text as bytes."""
    found: dict[int, tuple[int, Any]] = {
        256: (3, WIDTH), 257: (3, HEIGHT), 258: (3, (bits,) * bands), 259: (3, 1), 262: (3, 1),
        277: (3, bands), 278: (3, HEIGHT), 279: (4, len(samples)),
        **{int(name[1:]): tag for name, tag in tags.items()},
    }  # fmt: skip
    start, extra = 8 + 2 + 12 * (len(found) + 1) + 4, b""
    entries = []
    for number, (kind, value) in found.items():
        values = value if isinstance(value, tuple | bytes) else (value,)
        raw = values if isinstance(values, bytes) else b""
        if not raw:
            raw = struct.pack(order + _FORMATS[kind] * len(values), *values)
        if len(raw) > 4:
            raw, extra = struct.pack(order + "I", start + len(extra)), extra + raw
        entries.append((number, kind, len(values), raw))
    entries.append((273, 4, 1, struct.pack(order + "I", start + len(extra))))
    directory = b"".join(
        struct.pack(order + "HHI", number, kind, count) + raw.ljust(4, b"\0")
        for number, kind, count, raw in sorted(entries)
    )
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, len(entries))
    return head + directory + bytes(4) + extra + samples
