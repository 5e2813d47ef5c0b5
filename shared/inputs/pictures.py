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
from shared.inputs.picture_files import (
    lies_on_its_side,
    open_picture,
    readable,
    turned_upright,
)
from shared.inputs.picture_weight import is_light
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


def picture_input(pictures: Sequence[Buffer], spec: ModelSpec) -> Tensor:
    """Return encoded pictures as the model's instances want them; raises BadRequest."""
    return as_wanted(pictures, open_batch(pictures, spec), spec)


def as_wanted(pictures: Sequence[Buffer], opened: Opened, spec: ModelSpec) -> Tensor:
    """Return opened pictures as the model's instances want them: BYTES [rows], or pixels.

    They go as they came where the config has the worker decode and these are fewer bytes, and only
    if decoding them takes no time worth a look: a batch waits for its slowest picture. What is
    wrong behind the headers of such is found there. Raises BadRequest.
    """
    image = _image(spec)
    if (
        image.decode_in == "worker"
        and not spec.steps
        and sum(map(len, pictures)) < len(pictures) * image.pixel_bytes
        and opened.pixels <= MANY_PIXELS
        and all(map(is_light, pictures))
    ):
        files = np.array([bytes(each) for each in pictures], dtype=object)
        return Tensor.of(image.input, files, pixels=True)
    return decode_batch(opened, spec)


def decode_alone(data: Buffer, image: ImageInput, where: str) -> Array:
    """Return one of `as_wanted`'s as uint8 [1, height, width, channels]; raises BadRequest."""
    return _decode(open_picture(data, where), image, where)


def open_batch(pictures: Sequence[Buffer], spec: ModelSpec) -> Opened:
    """Read the headers; raises BadRequest."""
    image = _image(spec)
    check_row_count(len(pictures), spec)
    where = place_of(len(pictures))
    opened, total, limit = [], 0, Image.MAX_IMAGE_PIXELS or math.inf
    for n, data in enumerate(pictures):
        picture = open_picture(data, where.format(n))
        resized = _resized(picture.size, image, where.format(n))
        total += max(math.prod(picture.size), math.prod(resized))
        if total > limit:
            raise BadRequest(f"the pictures have more than {limit} pixels together")
        opened.append(picture)
    return Opened(opened, total)


def decode_batch(opened: Opened, spec: ModelSpec) -> Tensor:
    """Return the tensor of opened pictures; raises BadRequest."""
    image, where = _image(spec), place_of(len(opened.pictures))
    rows = [_decode(each, image, where.format(n)) for n, each in enumerate(opened.pictures)]
    return Tensor.of(image.input, np.ascontiguousarray(np.concatenate(rows)), pixels=True)


def place_of(count: int) -> str:
    """Return what errors call a picture of so many, with {} for its number."""
    return "the picture" if count == 1 else "picture {}"


def _image(spec: ModelSpec) -> ImageInput:
    assert spec.image is not None, "only called for image models"
    return spec.image


def _resized(size: tuple[int, int], image: ImageInput, where: str) -> tuple[int, int]:
    """Return the size to which an upright picture is resized, before it is cropped or padded.

    Raises BadRequest for a line so thin that its length, resized, would be above the pixel limit.
    """
    width, height = size
    if image.resize == "stretch":
        return image.width, image.height
    if image.resize == "pad":  # as ImageOps.contain has it
        if width * image.height > height * image.width:
            return image.width, round(height / width * image.width)
        return round(width / height * image.height), image.height
    shorter = image.resize_size or min(image.width, image.height)
    # torchvision's arithmetic: the longer side is cut to a whole number, the crop is centred.
    wide, high = (int(shorter * side / min(size)) for side in size)
    if wide * high > (Image.MAX_IMAGE_PIXELS or math.inf):
        raise BadRequest(
            f"{where} is too long and thin: {width} x {height} pixels would become "
            f"{wide} x {high}, more than {Image.MAX_IMAGE_PIXELS}"
        )
    return wide, high


def _decode(opened: ImageFile, image: ImageInput, where: str) -> Array:
    with readable(where, opened.format):
        picture = _small(opened, image, where) if image.decode == "fast" else _whole(opened, image)
        picture = turned_upright(picture, opened)
    fitted = _fit(picture, image, where)
    pixels = np.asarray(fitted).reshape(1, image.height, image.width, -1)
    return pixels[..., ::-1] if image.channels == "BGR" else pixels


def _whole(opened: ImageFile, image: ImageInput) -> Image.Image:
    opened.load()
    return coloured(opened, image)


def _small(opened: ImageFile, image: ImageInput, where: str) -> Image.Image:
    """Return a picture resized already, of a file that can be decoded at a part of its size.

    Any other is returned whole. At a part of its size the last row and column reach beyond the
    picture: the box that `draft` returns is what belongs to it.
    """
    on_its_side = lies_on_its_side(opened)
    size = opened.size
    wanted = _resized(size[::-1] if on_its_side else size, image, where)
    wanted = wanted[::-1] if on_its_side else wanted
    reduced = opened.draft(None, wanted)
    picture = _whole(opened, image)
    if reduced is None or opened.size == size:
        return picture
    return picture.resize(wanted, RESAMPLING[image.interpolation], box=reduced[1])


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
    picture = picture.resize(_resized(picture.size, image, where), resampling)
    left, top = round((picture.width - size[0]) / 2), round((picture.height - size[1]) / 2)
    return picture.crop((left, top, left + size[0], top + size[1]))
