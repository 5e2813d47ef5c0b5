"""White is what a picture's format says it is, and transparency shows the background."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from picture_bytes import HEIGHT, WIDTH, encoded, filled, png, tiff
from PIL import Image
from registered import spec

from shared.errors import BadRequest
from shared.inputs.pictures import picture_batch
from shared.model_spec import ImageInput

GREY = ImageInput(input="image", height=HEIGHT, width=WIDTH, channels="L")
ON_BLUE = ImageInput(input="image", height=HEIGHT, width=WIDTH, background=(0, 0, 255))
BLUE = [0, 0, 255]
SHORT, FLOAT = 3, 11
FLOATS, SIGNED, WHITE_IS_ZERO = {"t339": (SHORT, 3)}, {"t339": (SHORT, 2)}, {"t262": (SHORT, 0)}
RGB, ALPHA, COVERED = {"t262": (SHORT, 2)}, {"t338": (SHORT, 2)}, {"t338": (SHORT, 1)}


def shade(data: bytes) -> int:
    """Return the grey that a picture of one shade has."""
    pixels = picture_batch([data], spec("pictures", image=GREY)).array()
    assert len(np.unique(pixels)) == 1
    return int(pixels[0, 0, 0, 0])


def colour(data: bytes) -> list[int]:
    """Return the colour that a picture of one colour has on blue."""
    pixels = picture_batch([data], spec("pictures", image=ON_BLUE)).array().reshape(-1, 3)
    assert len(np.unique(pixels, axis=0)) == 1
    found: list[int] = pixels[0].tolist()
    return found


def refusal(data: bytes) -> str:
    with pytest.raises(BadRequest) as refused:
        shade(data)
    return str(refused.value)


@pytest.mark.parametrize("largest", [1, 100, 254, 255, 300, 1023, 4095, 65535])
@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("part", [0.0, 0.003, 0.2, 0.5, 1.0])
def test_white_is_a_pgms_largest_value_whatever_its_pixels_are(
    largest: int, plain: bool, part: float
) -> None:
    value = round(largest * part)
    packed = filled(value, ">u2" if largest > 255 else "u1")
    samples = b" %d" % value * WIDTH * HEIGHT if plain else packed
    data = b"P%d %d %d %d\n" % (2 if plain else 5, WIDTH, HEIGHT, largest) + samples

    assert abs(shade(data) - value * 255 / largest) <= 0.5


@pytest.mark.parametrize("largest", [100, 1023, 65535])
def test_white_is_a_ppms_largest_value(largest: int) -> None:
    samples = filled([largest, 0, largest // 5], ">u2" if largest > 255 else "u1")

    assert colour(b"P6 6 4 %d\n" % largest + samples) == [255, 0, 51]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("value", "datatype", "tags", "wanted"),
    [
        (200, "u2", {}, 1),
        (51400, "u2", {}, 200),
        (200, "i2", SIGNED, 2),
        (32767, "i2", SIGNED, 255),
        (-5, "i2", SIGNED, 0),
        (0.5, "f4", FLOATS, 128),
        (1.0, "f4", FLOATS, 255),
        (-1e30, "f4", FLOATS, 0),
        (1.3, "f4", FLOATS, 255),
        (np.nan, "f4", FLOATS, 0),
        (0.25, "f4", {**FLOATS, **WHITE_IS_ZERO}, 191),
        (200.0, "f4", {**FLOATS, "t341": (FLOAT, 255.0)}, 200),
        (0.0, "f4", {**FLOATS, "t340": (FLOAT, -1.0), "t341": (FLOAT, 1.0)}, 128),
        (1000, "i4", {**SIGNED, "t341": (SHORT, 5000)}, 51),
    ],
)
def test_grey_of_a_tiff(
    order: str, value: float, datatype: str, tags: dict[str, Any], wanted: int
) -> None:
    bits = 8 * int(datatype[1])

    assert shade(tiff(filled(value, order + datatype), bits=bits, order=order, **tags)) == wanted


def test_grey_of_16_bits_may_have_white_at_zero() -> None:
    assert shade(tiff(filled(51400, "<u2"), bits=16, **WHITE_IS_ZERO)) == 55


def test_grey_of_12_bits_is_white_at_4095() -> None:
    assert shade(tiff(b"\xff\xff\xff" * 12, bits=12)) == 255


def test_floats_of_a_pfm_are_white_at_1() -> None:
    assert shade(b"Pf\n6 4\n-1.0\n" + filled(0.2, "<f4")) == 51


@pytest.mark.parametrize("value", [200.0, 1e30, np.inf])
def test_floats_far_above_white_are_refused_and_told_the_tag(value: float) -> None:
    assert "SMaxSampleValue" in refusal(tiff(filled(value, "<f4"), bits=32, **FLOATS))


def test_whole_numbers_of_32_bits_are_refused_and_told_the_tag() -> None:
    assert "does not say what is white" in refusal(encoded(Image.new("I", (6, 4), 200), "TIFF"))


@pytest.mark.parametrize(
    ("datatype", "bands", "tags"),
    [("<f8", 1, FLOATS), ("<f2", 1, FLOATS), ("<f4", 3, {"t339": (SHORT, (3, 3, 3)), **RGB})],
)
def test_other_samples_are_refused_by_their_bits(
    datatype: str, bands: int, tags: dict[str, Any]
) -> None:
    bits = 8 * int(datatype[2])
    data = tiff(filled([0.5] * bands, datatype), bits=bits, bands=bands, **tags)

    assert f"bits of each sample {(bits,) * bands}" in refusal(data)


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (png(16, 0, filled(40000, ">u2"), struct.pack(">H", 40000)), BLUE),
        (png(16, 0, filled(40000, ">u2"), struct.pack(">H", 40001)), [156] * 3),
        (png(16, 2, filled([40000, 300, 65535], ">u2"), struct.pack(">HHH", 40000, 300, 65535)),
         BLUE),
        (png(16, 2, filled([40000, 300, 65535], ">u2"), struct.pack(">HHH", 9, 300, 65535)),
         [156, 1, 255]),
        (png(16, 6, filled([65535, 0, 0, 32768], ">u2")), [128, 0, 127]),
        (png(16, 4, filled([65535, 32768], ">u2")), [128, 128, 255]),
        (png(2, 0, b"\x55" * 8, b"\0\1"), BLUE),
        (png(2, 0, b"\x55" * 8, b"\0\2"), [85] * 3),
        (png(4, 0, b"\x77" * 12, b"\0\7"), BLUE),
        (png(1, 0, b"\xff" * 4, b"\0\1"), BLUE),
        (png(1, 0, b"\xff" * 4, b"\0\0"), [255] * 3),
        (png(8, 0, b"\x10" * 24, b"\xab\x10"), BLUE),
        (tiff(filled([65535, 0, 0, 32768], "<u2"), bits=16, bands=4, **RGB, **ALPHA),
         [128, 0, 127]),
        (tiff(filled([32768, 0, 0, 32768], "<u2"), bits=16, bands=4, **RGB, **COVERED),
         [128, 0, 127]),
        (tiff(filled([255, 128], "u1"), bits=8, bands=2, **ALPHA), [128, 128, 255]),
        (tiff(filled([128, 128], "u1"), bits=8, bands=2, **COVERED), [128, 128, 255]),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_transparent_shows_the_background(data: bytes, wanted: list[int]) -> None:
    assert colour(data) == wanted


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_inks_are_the_colours_they_print(kind: str) -> None:
    red = Image.new("RGB", (WIDTH, HEIGHT), (255, 0, 0)).convert("CMYK")

    assert colour(encoded(red, kind)) == [255, 0, 0]


def test_lab_becomes_colours_and_grey() -> None:
    red = encoded(Image.new("RGB", (WIDTH, HEIGHT), (255, 0, 0)).convert("LAB"), "TIFF")

    assert np.abs(np.array(colour(red)) - [255, 0, 0]).max() <= 5
    assert abs(shade(red) - 76) <= 3


def test_a_colour_profile_changes_nothing() -> None:
    data = encoded(Image.new("RGB", (WIDTH, HEIGHT), (1, 2, 3)), icc_profile=b"no profile at all")

    assert colour(data) == [1, 2, 3]
