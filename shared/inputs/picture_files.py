"""Picture files: which formats are taken, which are refused by name, which way is up.

Pillow reads them, and stands at a hostile border here: whatever it raises, the file is to blame.
Of a file's metadata the orientation alone is read.
"""

from __future__ import annotations

import io
import logging
import math
import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from shared.errors import BadRequest
from shared.inputs.picture_weight import check_bytes
from shared.messages import Buffer

log = logging.getLogger(__name__)

FIRST_BYTES = 4096
"""So much of a file that is not taken is looked at for its name."""
ORIENTATION = 0x0112
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns a picture upright, by its orientation (EXIF 2.32, 4.6.4)."""
ON_ITS_SIDE = 5
"""The first of the orientations, up to the last, at which width and height change places."""
RESOLUTION_TAGS = (282, 283, 296)
SUBFILE, SAMPLE_BITS, PHOTOMETRIC, SAMPLE_FORMAT = 254, 258, 262, 339
SUB_DIRECTORIES, DNG_VERSION = 330, 50706
SENSOR_DATA = {32803, 34892}
"""Values of PHOTOMETRIC by which a camera's raw file says that no colours are made yet."""
PNG_BEGIN = b"\x89PNG\r\n\x1a\n"
CHUNK_FRAME = 12
"""Bytes of a PNG's chunk besides its content: its length, its name, and a checksum."""
NEEDED_CHUNKS = {b"tRNS", b"eXIf"}
TEXT_CHUNKS = {b"tEXt", b"zTXt", b"iTXt"}
TEXTS_ON_ORIENTATION = {b"exif", b"Raw profile type exif", b"XML:com.adobe.xmp"}
MOST_TEXT = 1 << 20
"""Bytes of the longest text in which an orientation is looked for."""
_NUMBER_CODES = {1: "B", 3: "H", 4: "I"}  # of TIFF's BYTE, SHORT and LONG


class PngFile(PngImageFile):
    """A PNG whose transparent colour is told in the 8 bits that Pillow reads its pixels as.

    Pillow does not get to see metadata but what may tell the orientation: over large, and over
    damaged ones, it refuses the picture.
    """

    def _open(self) -> None:
        assert self.fp is not None, "it is until the pixels are loaded"
        self.fp = io.BytesIO(_without_metadata(self.fp.read()))
        super()._open()
        assert self.png is not None, "likewise"
        key, bits = self.info.get("transparency"), self.png.im_rawmode
        if self.mode == "L" and isinstance(key, int):
            largest = {"L;2": 3, "L;4": 15}.get(bits, 255)
            self.info["transparency"] = (key & largest) * (255 // largest)
        elif self.mode == "RGB" and isinstance(key, tuple):
            shift = 8 if "16" in bits else 0
            self.info["transparency"] = tuple(one >> shift & 255 for one in key)


class TiffFile(TiffImageFile):
    """A TIFF whose resolution is not read, nor any directory but the first."""

    def _setup(self) -> None:
        tags = self.tag_v2
        preview = tags.get(SUBFILE) == 1 and SUB_DIRECTORIES in tags
        if preview or DNG_VERSION in tags or tags.get(PHOTOMETRIC) in SENSOR_DATA:
            raise SyntaxError(f"it is a camera's raw file, {_not_taken()}")
        for tag in RESOLUTION_TAGS:
            del tags[tag]
        try:
            super()._setup()
        except SyntaxError as error:
            bits, kind = tags.get(SAMPLE_BITS), tags.get(SAMPLE_FORMAT, (1,))
            raise SyntaxError(
                f"{error} (bits of each sample {bits}, sample formats {kind}, photometric "
                f"{tags.get(PHOTOMETRIC)}), take 8 or 16 bits"
            ) from error
        self.info.pop("xmp", None)

    def getexif(self) -> Image.Exif:
        """Return the orientation, of all there is: Pillow turns what it has loaded by it."""
        exif = Image.Exif()
        exif[ORIENTATION] = self.tag_v2.get(ORIENTATION, 1)
        return exif


TAKEN = {
    "JPEG": (rb"\xff\xd8\xff", JpegImageFile),
    "PNG": (re.escape(PNG_BEGIN), PngFile),
    "WEBP": (rb"RIFF....WEBP", WebPImageFile),
    "GIF": (rb"GIF8[79]a", GifImageFile),
    "BMP": (rb"BM", BmpImageFile),
    "TIFF": (rb"(?!II\*\0....CR)(?:II|MM)(?:[*+]\0|\0[*+])", TiffFile),
    "PPM": (rb"P[1-6f]\s", PpmImageFile),
}
"""The formats that are taken: how their files begin, and what reads them."""

# And comments; a comment ends at its first end. Possessive, or two beside each other were tried in
# every way: the square of the length.
_SPACE = rb"\s*+(?:<!--(?:(?!-->).)*+-->\s*+)*+"
NOT_TAKEN = {
    "an AVIF picture": rb"....ftyp(?:avi[fs]|mif1.{,64}?avif)",
    "a HEIC picture": rb"....ftyp(?:hei[cmsx]|hev[cmsx]|mif1|msf1)",
    "a JPEG XL picture": rb"\xff\x0a|\0\0\0\x0cJXL ",
    "a JPEG 2000 picture": rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51",
    "a camera's raw file": (
        rb"II\*\0....CR|....ftypcrx |FUJIFILMCCD-RAW|FOVb|IIU\0|II(?:RO|RS)|MMOR|\0MRM"
    ),
    "a HEIF picture": rb"....ftyp(?:jpe[gs]|jpgs|avc[is])",
    "a video": (
        rb"....ftyp|....(?:moov|mdat|wide|free)|\x1aE\xdf\xa3|RIFF....AVI |FLV\x01|OggS|"
        rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11|\0\0\x01[\xba\xb3]|\x47.{187}\x47"
    ),
    "a sound": rb"RIFF....WAVE|ID3|fLaC",
    "a PDF": rb"\s*%PDF-",
    "a PostScript file": rb"%!PS|\xc5\xd0\xd3\xc6",
    "an SVG drawing": (
        _SPACE + rb"(?:<\?xml[^>]*+>)?" + _SPACE + rb"(?:<!DOCTYPE svg[^>]*+>\s*+)?<svg"
    ),
    "an HTML page": _SPACE + rb"<(?:!DOCTYPE html|html|head|body)",
    "an XML file": rb"\s*<\?xml",
    "a Photoshop file": rb"8BPS",
    "an OpenEXR picture": rb"v/1\x01",
    "a Radiance picture": rb"#\?R(?:ADIANC|GB)E",
    "a QOI picture": rb"qoif",
    "an icon": rb"\0\0[\1\2]\0(?!\0\0)|icns",
    "a TGA picture": (rb".\0[\2\3\x0a\x0b]\0{5}.{8}[\x08\x0f\x10\x18\x20]|.\x01[\1\x09].{13}\x08"),
    "a DDS texture": rb"DDS ",
    "a DICOM file": rb".{128}DICM",
    "a PAM picture": rb"P7\s",
    "a colour PFM picture": rb"PF\s",
    "an array of numpy": rb"\x93NUMPY",
    "a zip archive": rb"PK\x03\x04",
    "gzip data": rb"\x1f\x8b",
    "JSON": rb"\s*\[",
    "a URL": rb"\s*https?://",
    "base64 text": rb"data:[\w/+.-]*;base64,|/9j/|iVBORw0KGgo|R0lGOD[dl]h|UklGR",
}
"""Files that people send as pictures: their name, and how they begin."""

_TAKEN_BEGIN = [
    (name, re.compile(begin, re.DOTALL), reader) for name, (begin, reader) in TAKEN.items()
]
_NOT_TAKEN_BEGIN = [
    (name, re.compile(begin, re.DOTALL | re.IGNORECASE)) for name, begin in NOT_TAKEN.items()
]


def open_picture(data: Buffer, where: str) -> ImageFile:
    """Open a picture file; no more than its header is read. Raises BadRequest.

    So it does for more bytes than the pixels can need, whatever else they are.
    """
    if not data:
        raise BadRequest(f"{where} is empty")
    for name, begin, reader in _TAKEN_BEGIN:
        if begin.match(data):
            with readable(where, name):
                picture = reader(io.BytesIO(data))
                _check_pixels(picture)
            check_bytes(len(data), picture.size, name, where)
            return picture
    raise BadRequest(f"{where} is {_name(data)}")


def _check_pixels(picture: ImageFile) -> None:
    if math.prod(picture.size) > (Image.MAX_IMAGE_PIXELS or math.inf):
        raise Image.DecompressionBombError


@contextmanager
def readable(where: str, name: str | None) -> Iterator[None]:
    """Raise BadRequest for whatever Pillow raises over a file of the format `name`."""
    try:
        yield
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise BadRequest(
            f"{where} declares more than {Image.MAX_IMAGE_PIXELS} pixels, it is not decoded"
        ) from error
    except Exception as error:  # a border: Pillow's errors over damaged files are of every kind
        log.debug("%s cannot be decoded as %s, the client is told", where, name, exc_info=True)
        what = str(error) or type(error).__name__
        raise BadRequest(f"{where} cannot be decoded as {name}: {what}") from error


def turned_upright(picture: Image.Image, opened: ImageFile) -> Image.Image:
    """Return a picture as the orientation in its file says; one that cannot be read says nothing.

    `opened` is the file, its pixels loaded; `picture` may have other colours already.
    """
    method = UPRIGHT.get(_orientation(opened))
    return picture if method is None else picture.transpose(method)


def lies_on_its_side(opened: ImageFile) -> bool:
    """Tell whether a picture's rows become columns when it is turned upright."""
    return _orientation(opened) >= ON_ITS_SIDE


def _orientation(opened: ImageFile) -> int:
    if isinstance(opened, TiffFile):
        return 1  # Pillow has turned it
    exif = opened.info.get("exif")
    found = _in_exif(exif) if isinstance(exif, bytes) else None
    if found is None:
        try:  # it may stand in a text of ImageMagick's, or in XMP
            found = opened.getexif().get(ORIENTATION, 1)
        except Exception:  # a border: as above, but the picture itself is sound
            log.debug("an orientation cannot be read, the picture stays as it is", exc_info=True)
            return 1
    return found if isinstance(found, int) else 1


def _in_exif(exif: bytes) -> int | None:
    """Return the orientation in the first directory, whatever else is written there."""
    data = exif.removeprefix(b"Exif\0\0")
    order = ">" if data[:2] == b"MM" else "<"
    try:
        start = struct.unpack_from(order + "I", data, 4)[0]
        count = struct.unpack_from(order + "H", data, start)[0]
        for at in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(order + "HH", data, at)
            if tag == ORIENTATION and kind in _NUMBER_CODES:
                value: int = struct.unpack_from(order + _NUMBER_CODES[kind], data, at + 8)[0]
                return value
    except struct.error:
        pass
    return None


def _name(data: Buffer) -> str:
    """Return the name of a file that is not taken, and of those that are."""
    for name, begin in _NOT_TAKEN_BEGIN:
        if begin.match(data[:FIRST_BYTES]):
            return f"{name}, {_not_taken()}"
    return f"in no format that Ferry knows: {_expected()}"


def _without_metadata(data: bytes) -> bytes:
    """Return a PNG without what is not needed to show it: colour profiles, texts, animation."""
    parts, texts, start, at = [], set(TEXTS_ON_ORIENTATION), 0, len(PNG_BEGIN)
    view = memoryview(data)
    while at + CHUNK_FRAME <= len(data):
        size, name = struct.unpack_from(">I4s", data, at)
        end = at + CHUNK_FRAME + size
        if end > len(data):
            break  # cut off: Pillow says so
        if not _is_needed(name, view[at + 8 : end - 4], texts):
            parts.append(view[start:at])
            start = end
        at = end
    return b"".join([*parts, view[start:]]) if parts else data


def _is_needed(name: bytes, content: memoryview, texts: set[bytes]) -> bool:
    """Tell whether a PNG's chunk is; of `texts` the first each, which is taken out of them."""
    if name in TEXT_CHUNKS:
        keyword = bytes(content[:80]).partition(b"\0")[0]
        if keyword not in texts or not _is_small(name, bytes(content[: MOST_TEXT + 1])):
            return False
        texts.remove(keyword)
        return True
    is_ancillary = name[:1].islower()
    return not is_ancillary or name in NEEDED_CHUNKS


def _is_small(name: bytes, content: bytes) -> bool:
    """Tell whether a text is small enough for Pillow, once its compression is undone."""
    method, packed = content.partition(b"\0")[2][:1], content.partition(b"\0")[2][1:]
    if name == b"iTXt" and method == b"\1":  # behind it the method, a language, a translation
        method, packed = packed[:1], packed[1:].split(b"\0", 2)[-1]
    elif name != b"zTXt":
        return len(content) <= MOST_TEXT
    unpacker = zlib.decompressobj()
    try:
        unpacker.decompress(packed, MOST_TEXT)
    except zlib.error:
        return False
    return method == b"\0" and len(content) <= MOST_TEXT and not unpacker.unconsumed_tail


def _not_taken() -> str:
    return f"which is not taken: {_expected()}"


def _expected() -> str:
    return f"expected one of {', '.join(TAKEN)}"
