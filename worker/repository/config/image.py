"""The `image_*` parameters of a `config.pbtxt`: how a picture becomes the model's input."""

from __future__ import annotations

from typing import Any

from tritonclient.grpc import model_config_pb2

from shared.model_spec import ImageInput
from worker.repository.config.parameters import number, numbers


def read_image(message: Any, parameters: dict[str, str]) -> ImageInput | None:
    """Read the `image_*` parameters; height, width and channels come from the first input."""
    if parameters.get("input_kind") != "image":
        return None
    item = message.input[0]
    layout = "NHWC" if item.format == model_config_pb2.ModelInput.FORMAT_NHWC else "NCHW"
    channels, height, width = _picture_dims(item, layout)
    order = parameters.get("image_channels", "RGB")
    if channels != (1 if order == "L" else 3):
        raise ValueError(f"image_channels {order!r} does not fit {channels} channels in dims")
    return ImageInput.model_validate(
        {
            "input": item.name,
            "height": height,
            "width": width,
            "channels": order,
            "layout": layout,
            "resize": parameters.get("image_resize", "stretch"),
            "resize_size": number(parameters, "image_resize_size", "0", int),
            "interpolation": parameters.get("image_interpolation", "bilinear"),
            "background": numbers(parameters, "image_background", "255,255,255", int),
            "scale": number(parameters, "image_scale", "1", float),
            "mean": _per_channel(parameters, "image_mean", "0", channels),
            "std": _per_channel(parameters, "image_std", "1", channels),
        }
    )


def _picture_dims(item: Any, layout: str) -> tuple[int, int, int]:
    """Return channels, height and width."""
    dims = tuple(item.dims)
    if len(dims) != len(layout) - 1 or min(dims) < 1:
        raise ValueError(
            f"input {item.name!r}: dims {list(dims)}, a picture has {layout[1:]} of fixed size"
        )
    return dims if layout == "NCHW" else (dims[2], dims[0], dims[1])


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
