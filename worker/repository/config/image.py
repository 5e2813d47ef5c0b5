"""The `image_*` parameters of a `config.pbtxt`: how a picture becomes the model's input."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from tritonclient.grpc import model_config_pb2

from shared.datatypes import NUMPY_TYPES
from shared.model_spec import ImageInput
from worker.repository.config.parameters import number, numbers
from worker.repository.config.tensors import PICTURE_DIMENSIONS, read_datatype

FEWEST_LEVELS = 16
"""Of each channel; quantised models have 256, and one that wants fractions would be left with 2."""

DECODE_IN, DECODERS, MOST_DECODERS = "image_decode_in", "image_decoders", 64
"""Ferry's own: where pictures are decoded, and in how many processes of each instance."""


def read_image(message: Any, parameters: dict[str, str]) -> ImageInput | None:
    """Read the `image_*` parameters; height, width and channels come from the first input."""
    if parameters.get("input_kind") != "image":
        return None
    item = message.input[0]
    order = parameters.get("image_channels", "RGB")
    wanted = 1 if order == "L" else 3
    layout = _layout(item, wanted)
    channels, height, width = _picture_dims(item, layout, batched=message.max_batch_size > 0)
    if channels != wanted:
        raise ValueError(f"image_channels {order!r} does not fit {channels} channels in dims")
    image = _described(parameters, item.name, layout, (height, width), channels)
    _check_values(image, read_datatype(item.data_type, f"input {item.name!r}"))
    decoder_count(parameters, 1)
    return image


def decoder_count(parameters: Mapping[str, str], threads: int) -> int:
    """Return how many processes decode pictures for an instance of so many threads.

    Raises ValueError.
    """
    count = number(parameters, DECODERS, str(threads), int)
    if not 1 <= count <= MOST_DECODERS:
        raise ValueError(f"{DECODERS} {count}: expected a number from 1 to {MOST_DECODERS}")
    return count


def _described(
    parameters: dict[str, str], name: str, layout: str, size: tuple[int, int], channels: int
) -> ImageInput:
    return ImageInput.model_validate(
        {
            "input": name,
            "height": size[0],
            "width": size[1],
            "channels": parameters.get("image_channels", "RGB"),
            "layout": layout,
            "resize": parameters.get("image_resize", "stretch"),
            "resize_size": number(parameters, "image_resize_size", "0", int),
            "interpolation": parameters.get("image_interpolation", "bilinear"),
            "decode": parameters.get("image_decode", "exact"),
            "decode_in": parameters.get(DECODE_IN, "api"),
            "background": numbers(parameters, "image_background", "255,255,255", int),
            "scale": number(parameters, "image_scale", "1", float),
            "mean": _per_channel(parameters, "image_mean", "0", channels),
            "std": _per_channel(parameters, "image_std", "1", channels),
        }
    )


def _layout(item: Any, channels: int) -> str:
    """Return the declared format; without one, what the place of the channels says."""
    formats = model_config_pb2.ModelInput
    if item.format == formats.FORMAT_NONE and len(item.dims) >= PICTURE_DIMENSIONS:
        first, _, last = item.dims[-PICTURE_DIMENSIONS:]
        return "NHWC" if last == channels != first else "NCHW"
    return "NHWC" if item.format == formats.FORMAT_NHWC else "NCHW"


def _picture_dims(item: Any, layout: str, *, batched: bool) -> tuple[int, int, int]:
    """Return channels, height and width; without a batch, one picture may have a dimension too."""
    dims = tuple(item.dims)
    leading, dims = dims[:-PICTURE_DIMENSIONS], dims[-PICTURE_DIMENSIONS:]
    has_place = not leading or (not batched and leading in {(1,), (-1,)})
    if not has_place or len(dims) != PICTURE_DIMENSIONS or min(dims) < 1:
        raise ValueError(
            f"input {item.name!r}: dims {list(item.dims)}, a picture has {layout[1:]} of fixed size"
        )
    return dims if layout == "NCHW" else (dims[2], dims[0], dims[1])


def _check_values(image: ImageInput, datatype: str) -> None:
    """Raise ValueError unless the input's datatype holds what the formula makes of pixels."""
    where = f"input {image.input!r}: "
    if datatype in {"BOOL", "BYTES"}:
        raise ValueError(f"{where}{datatype} holds no colours")
    pairs = list(zip(*np.broadcast_arrays(image.mean, image.std), strict=True))
    values = [(pixel * image.scale - mean) / std for pixel in (0, 255) for mean, std in pairs]
    least, most = min(values), max(values)
    made = f"image_scale, image_mean and image_std make {least:g} to {most:g} of pixels"
    if not np.isfinite(values).all():
        raise ValueError(f"{where}{made}")
    if datatype.startswith(("FP", "BF")):
        if datatype == "FP16" and max(-least, most) > np.finfo(np.float16).max:
            raise ValueError(f"{where}{made}, more than FP16 holds")
        return
    limits = np.iinfo(NUMPY_TYPES[datatype])
    if round(least) < limits.min or round(most) > limits.max:
        raise ValueError(f"{where}{made}, {datatype} holds {limits.min} to {limits.max}")
    if any(abs(255 * image.scale / std) < FEWEST_LEVELS - 1 for _, std in pairs):
        raise ValueError(f"{where}{made}, of which few are left as the whole numbers of {datatype}")


def _per_channel(
    parameters: dict[str, str], key: str, default: str, channels: int
) -> tuple[float, ...]:
    """Return one number for all channels, or one for each."""
    found = numbers(parameters, key, default, float)
    if len(found) not in {1, channels}:
        raise ValueError(f"{key}: {len(found)} numbers for {channels} channels (got {list(found)})")
    if key == "image_std" and 0.0 in found:
        raise ValueError(f"{key}: must not be 0 (got {list(found)})")
    return found
