"""Picture files: the formats taken and refused by name, which way is up, and damage."""

from __future__ import annotations

import struct
import time
import zlib
from typing import Any

import numpy as np
import pytest
from picture_bytes import encoded, filled, png, tiff
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2
from registered import spec

from shared.datatypes import Array
from shared.errors import BadRequest
from shared.inputs.picture_files import TAKEN
from shared.inputs.pictures import picture_batch
from shared.model_spec import ImageInput

SHORT, LONG, TEXT = 3, 4, 2
ORIENTATION = 0x0112
# What turns an upright picture into one that is stored with the tag (EXIF 2.32, 4.6.4).
STORED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
SQUARES = np.arange(6, dtype=np.uint8).reshape(2, 3) * 50
WIDE = Image.fromarray(np.kron(SQUARES, np.ones((8, 8), np.uint8)))
"""An upright picture of 24 x 16 pixels: six squares that are told apart in every format."""


def decoded(data: bytes, **image: Any) -> Array:
    wanted = ImageInput(**{"input": "image", "height": 16, "width": 24, "channels": "L", **image})
    return picture_batch([data], spec("pictures", image=wanted)).array()[0, ..., 0]


def refusal(data: bytes) -> str:
    with pytest.raises(BadRequest) as refused:
        decoded(data)
    return str(refused.value)


def stored(orientation: int) -> Image.Image:
    return WIDE.transpose(STORED[orientation]) if orientation in STORED else WIDE


def exif(orientation: int, *others: tuple[int, int, bytes], order: str = "<") -> bytes:
    """Return a directory with the orientation among `others`: (tag, type, value's 8 bytes)."""
    entries = [(ORIENTATION, SHORT, struct.pack(order + "IHH", 1, orientation, 0)), *others]
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, len(entries))
    packed = [struct.pack(order + "HH", tag, kind) + value for tag, kind, value in sorted(entries)]
    return b"Exif\0\0" + head + b"".join(packed) + bytes(4)


def assert_upright(data: bytes) -> None:
    assert np.abs(decoded(data).astype(int) - np.asarray(WIDE)).max() <= 12


def chunk(name: str, content: bytes) -> bytes:
    named = name.encode() + content
    return struct.pack(">I", len(content)) + named + struct.pack(">I", zlib.crc32(named))


def with_chunks(picture: Image.Image, *chunks: bytes, last: bool = False) -> bytes:
    """Return a PNG with more chunks, before the pixels or as its last ones."""
    data = encoded(picture.convert("RGB"))
    at = len(data) - 12 if last else 8 + 25
    return data[:at] + b"".join(chunks) + data[at:]


LARGE = {
    "a profile": [chunk("iCCP", b"p\0\0" + zlib.compress(bytes(1_100_000)))],
    "a packed text": [chunk("zTXt", b"Comment\0\0" + zlib.compress(b"a" * 1_200_000))],
    "a packed text of Unicode": [
        chunk("iTXt", b"Comment\0\1\0\0\0" + zlib.compress(b"a" * 1_200_000))
    ],
    "packed XMP": [chunk("iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(b"a" * 1_200_000))],
    "packed EXIF": [chunk("zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"a" * 1_200_000))],
    "14 MB of texts": [chunk("tEXt", b"Comment\0" + b"a" * 2_000_000)] * 7,
    "14 MB of XMP": [chunk("iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + b"a" * 1_000_000)] * 14,
    "an unknown compression": [chunk("zTXt", b"Comment\0\7abc")],
    "a damaged profile": [chunk("iCCP", b"p\0\7abc")],
    "short numbers": [chunk(name, b"") for name in ("gAMA", "cHRM", "sRGB", "pHYs", "acTL")],
}
"""Chunks of a sound PNG over which Pillow refuses it."""


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("what", LARGE)
def test_a_png_is_taken_whatever_its_metadata(what: str, last: bool) -> None:
    turn = chunk("eXIf", exif(6).removeprefix(b"Exif\0\0"))

    assert_upright(with_chunks(stored(6), *LARGE[what], turn, last=last))


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("named", ["exif", "XMP"])
def test_an_orientation_in_a_text_of_a_png_is_obeyed(named: str, packed: bool, last: bool) -> None:
    profile = f"\nexif\n  0\n{exif(6).hex()}\n".encode()
    xmp = b'<rdf tiff:Orientation="6"/>'
    pack = zlib.compress if packed else bytes
    text = {
        ("exif", False): chunk("tEXt", b"Raw profile type exif\0" + profile),
        ("exif", True): chunk("zTXt", b"Raw profile type exif\0\0" + pack(profile)),
        ("XMP", False): chunk("iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp),
        ("XMP", True): chunk("iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + pack(xmp)),
    }[named, packed]
    comment = chunk("tEXt", b"Comment\0nothing")

    assert_upright(with_chunks(stored(6), comment, text, comment, last=last))


def test_a_text_that_unpacks_to_much_costs_little() -> None:
    bomb = zlib.compress(bytes(400_000_000), 9)
    data = with_chunks(WIDE, chunk("zTXt", b"Raw profile type exif\0\0" + bomb))

    began = time.process_time()
    assert_upright(data)
    assert time.process_time() - began < 0.5


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_every_orientation_is_turned_upright(kind: str, orientation: int, order: str) -> None:
    tag = exif(orientation, order=order)
    options = {"JPEG": {"quality": 100}, "WEBP": {"lossless": True}}.get(kind, {})

    assert_upright(encoded(stored(orientation).convert("RGB"), kind, exif=tag, **options))


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_of_a_tiff_is_turned_upright(
    orientation: int, compression: str | None
) -> None:
    tags = ImageFileDirectory_v2()
    tags[ORIENTATION] = orientation

    assert_upright(encoded(stored(orientation), "TIFF", tiffinfo=tags, compression=compression))


def test_an_orientation_that_only_xmp_has_is_obeyed() -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="6"/></x:xmpmeta>'

    assert_upright(encoded(stored(6), "JPEG", quality=100, xmp=xmp))


FAR = struct.pack("<II", 40, 9_999_999)
BROKEN = {
    "resolution as text": (0x011A, TEXT, b"\4\0\0\0" + b"72 \0"),
    "maker far behind the end": (0x010F, TEXT, FAR),
    "directory far behind the end": (0x8769, LONG, struct.pack("<II", 1, 9_999_999)),
    "directory that is text": (0x8825, TEXT, b"\4\0\0\0" + b"gps\0"),
    "directory that is itself": (0x8769, LONG, struct.pack("<II", 1, 8)),
    "rational that is divided by nothing": (0x011A, 5, struct.pack("<II", 1, 0)),
    "unknown type": (0x0110, 99, FAR),
    "count beyond all": (0x0110, TEXT, struct.pack("<II", 2**32 - 1, 8)),
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN.keys())
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_the_orientation_is_read_whatever_stands_beside_it(
    kind: str, broken: tuple[int, int, bytes]
) -> None:
    options = {"JPEG": {"quality": 100}, "WEBP": {"lossless": True}}.get(kind, {})

    assert_upright(encoded(stored(6).convert("RGB"), kind, exif=exif(6, broken), **options))


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize(
    "tags",
    [
        {"t282": (TEXT, b"72 dpi\0\0"), "t283": (TEXT, b"72 dpi\0\0"), "t296": (SHORT, 3)},
        {"t34665": (LONG, 9_999_999), "t34853": (TEXT, b"abcd")},
        {"t700": (SHORT, 7), "t274": (SHORT, 1)},
        {"t33723": (TEXT, b"no iptc\0"), "t34675": (TEXT, b"no profile")},
    ],
    ids=str,
)
def test_a_tiff_is_decoded_whatever_its_metadata_says(tags: dict[str, Any]) -> None:
    assert np.unique(decoded(tiff(filled(200, "u1"), bits=8, **tags))).tolist() == [200]


@pytest.mark.parametrize(
    "garbage",
    [b"Exif\0\0", b"Exif\0\0II*\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0nonsense"],
)
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_an_orientation_that_cannot_be_read_says_nothing(garbage: bytes) -> None:
    assert_upright(encoded(WIDE, "JPEG", quality=100, exif=garbage))


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_there_is_not_says_nothing(orientation: int) -> None:
    assert_upright(encoded(WIDE, "JPEG", quality=100, exif=exif(orientation)))


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_of_many_pictures_is_taken(kind: str) -> None:
    others = [WIDE.point(lambda value: 255 - value).convert("RGB")]
    options = {"lossless": True} if kind == "WEBP" else {}

    assert_upright(
        encoded(WIDE.convert("RGB"), kind, save_all=True, append_images=others, **options)
    )


# Refused by name.

CAMERA = {"t254": (LONG, 1), "t330": (LONG, 8)}


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "a HEIC picture"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1heic", "a HEIC picture"),
        (b"\0\0\0\x1cftypavif\0\0\0\0avifmif1", "an AVIF picture"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1avif", "an AVIF picture"),
        (b"%PDF-1.7\n", "a PDF"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG drawing"),
        (b'<?xml version="1.0"?>\n<!-- by hand -->\n<!DOCTYPE svg>\n<svg/>', "an SVG drawing"),
        (b"\xff\x0a\xfa\x7f", "a JPEG XL picture"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "a JPEG XL picture"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "a JPEG 2000 picture"),
        (b"II*\0\x10\0\0\0CR\2\0", "a camera's raw file"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1", "a camera's raw file"),
        (b"FUJIFILMCCD-RAW 0201", "a camera's raw file"),
        (b"IIU\0\x18\0\0\0", "a camera's raw file"),
        (tiff(filled(9, "u1"), bits=8, **CAMERA), "a camera's raw file"),
        (tiff(filled(9, "u1"), bits=8, t50706=(LONG, 1)), "a camera's raw file"),
        (tiff(filled(9, "<u2"), bits=16, t262=(SHORT, 32803)), "a camera's raw file"),
        (b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41", "a video"),
        (b"\0\0\0\x14ftypqt  ", "a video"),
        (b"\x1aE\xdf\xa3\x9fB\x86\x81\1", "a video"),
        (b"RIFF\x24\0\0\0AVI LIST", "a video"),
        (b"8BPS\0\1", "a Photoshop file"),
        (b"\0\0\1\0\1\0", "an icon"),
        (b"\0\0\2\0\1\0\x20\x20", "an icon"),
        (b"\0\0\2" + bytes(9) + b"\x08\0\x08\0\x18\0", "a TGA picture"),
        (b"\5\0\x0a" + bytes(9) + b"\x08\0\x08\0\x20\0", "a TGA picture"),
        (b"\0\1\1\0\0\0\1\x18\0\0\0\0\x08\0\x08\0\x08\0", "a TGA picture"),
        (b"\0\0\0\x18ftypjpeg\0\0\0\0", "a HEIF picture"),
        (b"P7\nWIDTH 6\n", "a PAM picture"),
        (b"<!DOCTYPE html><html>", "an HTML page"),
        (b"iVBORw0KGgoAAAANSUhEUg==", "base64 text"),
        (b"data:image/png;base64,iVBORw0KGgo", "base64 text"),
        (b"https://example.com/cat.jpg", "a URL"),
        (b"PK\x03\x04\x14\0", "a zip archive"),
    ],
)  # fmt: skip
def test_what_is_not_taken_is_refused_by_name(data: bytes, name: str) -> None:
    message = refusal(data)

    assert f"{name}, which is not taken" in message
    assert all(taken in message for taken in TAKEN)


@pytest.mark.parametrize("start", [b"", b"<?xml version='1.0'?>", b" "])
@pytest.mark.parametrize("piece", [b"<!--a-->", b"<!--", b"-->", b" ", b"<", b"<!--a--> \n"])
def test_the_name_of_what_is_not_taken_is_found_at_once(start: bytes, piece: bytes) -> None:
    began = time.process_time()
    refusal(start + piece * 20_000 + b"?")

    assert time.process_time() - began < 0.3


def test_what_is_nothing_known_is_told_what_is_taken() -> None:
    assert refusal(b"hello") == (
        "the picture is in no format that Ferry knows: "
        "expected one of JPEG, PNG, WEBP, GIF, BMP, TIFF, PPM"
    )


# Damage.

NOISE = Image.effect_noise((24, 24), 60).convert("RGB")
SEEDS = {
    "JPEG": encoded(NOISE, "JPEG", exif=exif(6)),
    "inks": encoded(NOISE.convert("CMYK"), "JPEG", progressive=True, icc_profile=b"x" * 99),
    "PNG": encoded(NOISE, exif=exif(6)),
    "PNG of a palette": encoded(NOISE.quantize(16), transparency=bytes([0, 128, 255])),
    "PNG of 16 bits": png(16, 0, filled(40000, ">u2"), b"\x9c\x40"),
    "moving PNG": encoded(NOISE, save_all=True, append_images=[NOISE.rotate(90)] * 2),
    "WEBP": encoded(NOISE, "WEBP", exif=exif(6)),
    "moving WEBP": encoded(NOISE, "WEBP", save_all=True, append_images=[NOISE.rotate(90)]),
    "GIF": encoded(NOISE.quantize(8), "GIF", transparency=1),
    "moving GIF": encoded(NOISE, "GIF", save_all=True, append_images=[NOISE.rotate(90)]),
    "BMP": encoded(NOISE, "BMP"),
    "BMP of a palette": encoded(NOISE.quantize(8), "BMP"),
    "TIFF": encoded(NOISE, "TIFF", exif=exif(6)),
    "packed TIFF": encoded(NOISE, "TIFF", compression="tiff_lzw"),
    "TIFF with a JPEG": encoded(NOISE, "TIFF", compression="jpeg"),
    "TIFF of floats": tiff(filled(0.5, "<f4"), bits=32, t339=(SHORT, 3)),
    "TIFF of LAB": encoded(NOISE.convert("LAB"), "TIFF"),
    "PPM": encoded(NOISE, "PPM"),
    "PGM": b"P5 6 4 1023\n" + filled(500, ">u2"),
    "plain PGM": b"P2 6 4 255\n" + b" 80" * 24,
    "PFM": b"Pf\n6 4\n-1.0\n" + filled(0.5, "<f4"),
}
DAMAGED_EACH = 120


def mended(data: bytes) -> bytes:
    """Return a PNG whose checksums are right again, so that its damage is looked at."""
    out, at = data[:8], 8
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4])
        if end + 4 > len(data):
            break
        out += data[at:end] + struct.pack(">I", zlib.crc32(data[at + 4 : end]))
        at = end + 4
    return out + data[at:]


def damaged(whole: bytes, random: np.random.Generator) -> bytes:
    data = np.frombuffer(whole, np.uint8).copy()
    reach = len(data) if random.random() < 0.3 else min(len(data), 250)
    count = int(random.integers(1, 6))
    data[random.integers(0, reach, count)] = random.choice([0, 1, 2, 127, 128, 254, 255], count)
    found, at = data.tobytes(), int(random.integers(0, reach))
    if random.random() < 0.15:
        found = found[:at]
    elif random.random() < 0.2:
        found = found[:at] + random.bytes(int(random.integers(0, 9))) + found[at + 3 :]
    return mended(found) if whole.startswith(b"\x89PNG") else found


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("kind", SEEDS)
def test_a_damaged_file_is_decoded_or_refused(kind: str) -> None:
    random, whole = np.random.default_rng(3), SEEDS[kind]
    decoded(whole)

    for n in range(DAMAGED_EACH):
        try:
            decoded(damaged(whole, random), resize=("stretch", "crop", "pad")[n % 3])
        except BadRequest as error:
            assert str(error)


@pytest.mark.parametrize(
    "surprise", [RuntimeError("x"), MemoryError(), KeyError(1), AttributeError("y"), Exception()]
)
def test_whatever_pillow_raises_the_picture_is_refused(
    surprise: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = encoded(WIDE)

    def fail(_: object) -> None:
        raise surprise

    for method in ("_open", "load"):
        with monkeypatch.context() as patched:
            patched.setattr(TAKEN["PNG"][1], method, fail)
            assert refusal(data).startswith("the picture cannot be decoded as PNG: ")
