"""What reading a picture file may cost, told from its bytes before Pillow sees any.

Pillow reads headers in Python, piece by piece: a file of many small pieces takes it seconds.
"""

from __future__ import annotations

import struct

from shared.errors import BadRequest
from shared.messages import Buffer

SMALL_BYTES = 32 * 1024
"""A file that is read within some milliseconds whatever is in it, but for a JPEG's scans."""
MAX_PIECES = 256
"""A JPEG has some ten segments in front of its pixels; of PNGs these are up to 2 MB."""
MAX_SCANS = 16
"""A progressive JPEG has ten; each goes over all of its pixels."""
PIXEL_BYTES = 8
"""The largest pixel, four times 16 bits; compressed, none takes more."""
OTHER_BYTES = 4 * 2**20
"""For colour profiles and other metadata."""
FRAMES_BYTES = 16 * 2**20
"""The same of formats that hold several pictures, of which the first is taken."""
SEVERAL = frozenset({"GIF", "PNG", "WEBP", "TIFF"})
SEARCHED_BYTES = 2 * 2**20
"""More are searched for scans at 170 MB a second where all of them are 255."""
_CHUNK = struct.Struct(">I4s")
_START_OF_SCAN, _MARKER = 0xDA, 0xFF
_SCAN = b"\xff\xda"
_LONE_WEBP = (b"VP8 ", b"VP8L")


def is_light(data: Buffer) -> bool:
    """Tell whether a file's header is read in no time, and its pixels in one go, by its form."""
    if data[:2] == b"\xff\xd8":
        return (
            len(data) <= SEARCHED_BYTES
            and _count_scans(data) <= MAX_SCANS
            and (len(data) <= SMALL_BYTES or _is_plain_jpeg(data))
        )
    if len(data) <= SMALL_BYTES:
        return True
    if data[:4] == b"\x89PNG":
        return _is_plain_png(data)
    return data[:4] == b"RIFF" and bytes(data[12:16]) in _LONE_WEBP


def check_bytes(length: int, size: tuple[int, int], name: str, where: str) -> None:
    """Raise BadRequest for more bytes than so many pixels can need."""
    most = PIXEL_BYTES * size[0] * size[1] + (FRAMES_BYTES if name in SEVERAL else OTHER_BYTES)
    if length > most:
        raise BadRequest(
            f"{where} has {length} bytes, a {name} of {size[0]} x {size[1]} pixels at most {most}"
        )


def _count_scans(data: Buffer) -> int:
    return bytes(data).count(_SCAN)  # bytes of bytes is no copy


def _is_plain_jpeg(data: Buffer) -> bool:
    """Tell whether few segments, and nothing between them, stand in front of the first scan."""
    at = 2
    for _ in range(MAX_PIECES):
        if at + 4 > len(data) or data[at] != _MARKER:
            return False
        if data[at + 1] == _START_OF_SCAN:
            return True
        at += 2 + (data[at + 2] << 8 | data[at + 3])
    return False


def _is_plain_png(data: Buffer) -> bool:
    """Tell whether the file has few chunks."""
    at = 8
    for _ in range(MAX_PIECES):
        if at + 12 > len(data):
            return True
        at += 12 + _CHUNK.unpack_from(data, at)[0]
    return False
