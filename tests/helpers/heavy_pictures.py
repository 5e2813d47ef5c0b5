"""Picture files whose heads take long to read: many small pieces in front of their few pixels."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image

from shared.inputs.picture_weight import MAX_SCANS, SMALL_BYTES


def picture(side: int, kind: str = "PNG", mode: str = "RGB", **options: object) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    Image.fromarray(noise).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(name: bytes, content: bytes = b"") -> bytes:
    checksum = zlib.crc32(name + content)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)


HEADS = {
    "JPEG: fill bytes": ("JPEG", 2, b"\xff" * SMALL_BYTES),
    "JPEG: segments": ("JPEG", 2, b"\xff\xfe\0\2" * SMALL_BYTES),
    "JPEG: scans": ("JPEG", 2, b"\xff\xda" * (MAX_SCANS + 1)),
    "PNG: chunks": ("PNG", 33, chunk(b"abCd") * SMALL_BYTES),
    "GIF: blocks": ("GIF", 13, b"\x21\xfe\1a\0" * SMALL_BYTES),
    "PPM: comments": ("PPM", 3, b"#\n" * SMALL_BYTES),
    "TIFF": ("TIFF", 8, bytes(SMALL_BYTES)),
    "BMP": ("BMP", 14, bytes(SMALL_BYTES)),
}
"""By what they are: a format, where in a file of it, and pieces to stand there."""
