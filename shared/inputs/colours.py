"""A loaded picture's colours as 8 bits of RGB or grey, with the background behind transparency.

White is what the file's format says, never the largest value that is found in it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from shared.datatypes import Array
from shared.inputs.picture_files import PHOTOMETRIC, SAMPLE_BITS, SAMPLE_FORMAT, TiffFile
from shared.model_spec import ImageInput

WHITE = 255
DECLARED_BLACK, DECLARED_WHITE = 340, 341
"""TIFF's SMinSampleValue and SMaxSampleValue."""
SIGNED = 2
"""TIFF's SampleFormat of whole numbers below zero."""
LONG_BITS = 32
WHITE_IS_ZERO = 0
FLOAT_WHITE = 1.0
STRIP_PIXELS = 1_000_000
BRIGHTEST = 2.0
"""So many times white is a highlight; what is above it was written with another white."""


def coloured(picture: ImageFile, image: ImageInput) -> Image.Image:
    """Return a loaded picture in mode RGB or L, transparency laid over the background.

    Raises ValueError for numbers of which the file does not say what is white.
    """
    mode = "L" if image.channels == "L" else "RGB"
    seen: Image.Image = picture
    if picture.mode.startswith(("I", "F")):
        seen = _eight_bits(picture)
    elif picture.mode in {"LAB", "La"}:  # these become nothing else at once
        seen = picture.convert("RGB" if picture.mode == "LAB" else "LA")
    if seen.mode in {"RGBA", "LA", "PA"} or "transparency" in seen.info:
        layer = seen.convert("RGBA")
        ground = Image.new("RGBA", layer.size, (*three_numbers(image.background), 255))
        seen = Image.alpha_composite(ground, layer)
    return seen if seen.mode == mode else seen.convert(mode)


def three_numbers(background: tuple[int, ...]) -> tuple[int, int, int]:
    """Return the background as red, green and blue; one number stands for all three."""
    first, *rest = background
    return (first, rest[0], rest[1]) if len(rest) > 1 else (first, first, first)


def _eight_bits(picture: ImageFile) -> Image.Image:
    """Scale grey of 16 bits, or of floats, to 8; what Pillow makes of it is cut at 255."""
    black, white = _black_and_white(picture)
    values = np.asarray(picture)
    largest = _largest(values) if picture.mode == "F" else 0
    if largest > BRIGHTEST * max(black, white):
        raise ValueError(
            f"its largest number is {largest:g}, and white is {max(black, white):g} in a file of "
            "floats whose tag SMaxSampleValue says nothing else"
        )
    grey = Image.fromarray(_by_strips(values, lambda strip: _scaled(strip, black, white)))
    if "transparency" not in picture.info:
        return grey
    key = picture.info["transparency"]
    seen = _by_strips(values, lambda strip: np.where(strip == key, 0, WHITE).astype(np.uint8))
    return Image.merge("LA", (grey, Image.fromarray(seen)))


def _by_strips(values: Array, change: Callable[[Array], Array]) -> Array:
    """Return pixels of 8 bits: changed all at once, a picture would take ten times its size."""
    changed = np.empty(values.shape, np.uint8)
    high = max(1, STRIP_PIXELS // max(1, values.shape[1]))
    for top in range(0, len(values), high):
        changed[top : top + high] = change(values[top : top + high])
    return changed


def _scaled(values: Array, black: float, white: float) -> Array:
    known = np.nan_to_num(values.astype(np.float64))  # what is no number is 0
    scaled = (known - black) * (WHITE / (white - black)) + 0.5
    return np.clip(scaled, 0, WHITE).astype(np.uint8)


def _largest(values: Array) -> float:
    """Return the largest number, infinity as the largest there is; what is no number is 0."""
    return float(np.nan_to_num(np.fmax.reduce(values, axis=None, initial=0).astype(np.float64)))


def _black_and_white(picture: ImageFile) -> tuple[float, float]:
    """Return the numbers of black and of white, by the file's format; raises ValueError."""
    if not isinstance(picture, TiffFile):
        return 0, FLOAT_WHITE if picture.mode == "F" else 2**16 - 1
    tags = picture.tag_v2
    bits, default = _first(tags, SAMPLE_BITS), FLOAT_WHITE if picture.mode == "F" else None
    if bits < LONG_BITS:
        black, white = 0, 2 ** (bits - (_first(tags, SAMPLE_FORMAT) == SIGNED)) - 1
    else:
        black, white = _first(tags, DECLARED_BLACK, 0), _first(tags, DECLARED_WHITE, default)
    if white is None or black == white:
        raise ValueError(
            "a file of whole numbers with 32 bits does not say what is white: take 8 or 16 bits, "
            "or the tag SMaxSampleValue"
        )
    return (white, black) if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO else (black, white)


def _first(tags: ImageFileDirectory_v2, tag: int, default: Any = None) -> Any:
    """Return a tag's value, that of the first sample if each has its own."""
    value = tags.get(tag, default)
    return value[0] if isinstance(value, tuple) else value
