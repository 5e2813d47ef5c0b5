"""Encoded pictures become tensors of uint8 pixels, sized and coloured as the model wants."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps
from PIL.ImageFile import ImageFile

from shared.datatypes import Array
from shared.errors import BadRequest
from shared.inputs.colours import coloured, three_numbers
from shared.inputs.picture_files import open_picture, readable, turned_upright
from shared.messages import Buffer, Tensor
from shared.model_spec import ImageInput, ModelSpec, check_row_count

RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
MANY_PIXELS = 1_000_000
"""Above it decoding holds up an event loop by tens of milliseconds."""


def limit_pictures(max_pixels: int) -> None:
    """Limit the pixels that a request's pictures may have together, in this process.

    subtle: the filter stands for good, since `warnings.catch_warnings` is not safe among threads.
    """
    Image.MAX_IMAGE_PIXELS = max_pixels
    warnings.simplefilter("error", Image.DecompressionBombWarning)
    logging.getLogger("PIL").setLevel(logging.CRITICAL)  # a damaged file is no error of ours


class Opened(NamedTuple):
    """Pictures whose headers are read, and the pixels of all of them, as they are or resized."""

    pictures: list[ImageFile]
    pixels: int


def picture_batch(pictures: Sequence[Buffer], spec: ModelSpec) -> Tensor:
    """Return encoded pictures as uint8 [rows, height, width, channels], sized as the model wants.

    Takes every mode (palette, grey, alpha, 16 bits) and orientation tag that Pillow reads;
    transparent pixels show the model's background. Raises BadRequest. The pixels of all pictures
    are counted together before any is decoded: that is what a request may cost.
    """
    return decode_batch(open_batch(pictures, spec), spec)


def open_batch(pictures: Sequence[Buffer], spec: ModelSpec) -> Opened:
    """Read the headers; raises BadRequest."""
    image = _image(spec)
    check_row_count(len(pictures), spec)
    where = _where(pictures)
    opened, total, limit = [], 0, Image.MAX_IMAGE_PIXELS or math.inf
    for n, data in enumerate(pictures):
        picture = open_picture(data, where.format(n))
        resized = _resized(picture, image, where.format(n))
        total += max(math.prod(picture.size), math.prod(resized))
        if total > limit:
            raise BadRequest(f"the pictures have more than {limit} pixels together")
        opened.append(picture)
    return Opened(opened, total)


def decode_batch(opened: Opened, spec: ModelSpec) -> Tensor:
    """Return the tensor of opened pictures; raises BadRequest."""
    image, where = _image(spec), _where(opened.pictures)
    rows = [_decode(each, image, where.format(n)) for n, each in enumerate(opened.pictures)]
    return Tensor.of(image.input, np.ascontiguousarray(np.concatenate(rows)), pixels=True)


def _where(pictures: Sequence[object]) -> str:
    return "the picture" if len(pictures) == 1 else "picture {}"


def _image(spec: ModelSpec) -> ImageInput:
    assert spec.image is not None, "only called for image models"
    return spec.image


def _resized(picture: Image.Image, image: ImageInput, where: str) -> tuple[int, int]:
    """Return the size a picture is resized to, before it is cropped.

    Raises BadRequest for a line so thin that its length, resized, would be above the pixel limit.
    """
    if image.resize != "crop":
        return image.width, image.height
    shorter = image.resize_size or min(image.width, image.height)
    # torchvision's arithmetic: the longer side is cut to a whole number, the crop is centred.
    wide, high = (int(shorter * side / min(picture.size)) for side in picture.size)
    if wide * high > (Image.MAX_IMAGE_PIXELS or math.inf):
        raise BadRequest(
            f"{where} is too long and thin: {picture.width} x {picture.height} pixels would become "
            f"{wide} x {high}, more than {Image.MAX_IMAGE_PIXELS}"
        )
    return wide, high


def _decode(opened: ImageFile, image: ImageInput, where: str) -> Array:
    with readable(where, opened.format):
        opened.load()
        picture = turned_upright(coloured(opened, image), opened)
    fitted = _fit(picture, image, where)
    pixels = np.asarray(fitted).reshape(1, image.height, image.width, -1)
    return pixels[..., ::-1] if image.channels == "BGR" else pixels


def _fit(picture: Image.Image, image: ImageInput, where: str) -> Image.Image:
    """Resize as the model's config says: stretch, or crop the middle, or pad."""
    resampling = RESAMPLING[image.interpolation]
    size = (image.width, image.height)
    if image.resize == "stretch":
        return picture if picture.size == size else picture.resize(size, resampling)
    if image.resize == "pad":
        ground = three_numbers(image.background)
        colour = ground[0] if picture.mode == "L" else ground
        return ImageOps.pad(picture, size, resampling, color=colour)
    picture = picture.resize(_resized(picture, image, where), resampling)
    left, top = round((picture.width - size[0]) / 2), round((picture.height - size[1]) / 2)
    return picture.crop((left, top, left + size[0], top + size[1]))
