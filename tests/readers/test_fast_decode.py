"""JPEGs decoded at a part of their size: nearly the same pixels, of fewer that were decoded."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format
from picture_bytes import encoded
from PIL import Image
from registered import spec
from tritonclient.grpc import model_config_pb2

from bench.scenarios import photo_body
from shared.datatypes import Array
from shared.inputs.picture_files import open_picture
from shared.inputs.pictures import decode_batch, open_batch
from shared.model_spec import ImageInput, TensorSpec
from worker.repository.config.image import read_image

X = TensorSpec(name="x", datatype="FP32", dims=(3, 224, 160))
EXIF_ORIENTATION = 0x0112
MOST_OFF_ON_AVERAGE, MOST_OFF = 3.0, 64


def photo(width: int, kind: str = "JPEG", orientation: int = 1) -> bytes:
    """Return a photo enlarged to a width, odd in both directions."""
    picture = open_picture(photo_body(), "the photo").resize(
        (width, width * 427 // 640 | 1), Image.Resampling.LANCZOS
    )
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    return encoded(picture, kind, **({"exif": exif, "quality": 90} if kind == "JPEG" else {}))


def decoded(data: bytes, **image: Any) -> tuple[Array, tuple[int, int]]:
    """Return the pixels for a model of 160 x 224, and the size that was decoded."""
    found = spec("m", X, image=ImageInput(input="x", height=224, width=160, **image))
    opened = open_batch([data], found)
    pixels = decode_batch(opened, found).array().astype(int)
    return pixels, opened.pictures[0].size


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("resize", ["crop", "stretch", "pad"])
def test_a_large_photo_looks_nearly_the_same(resize: str, orientation: int) -> None:
    data = photo(1921, orientation=orientation)

    exact, whole = decoded(data, resize=resize)
    fast, part = decoded(data, resize=resize, decode="fast")

    assert fast.shape == exact.shape == (1, 224, 160, 3)
    assert part[0] <= whole[0] / 2 and part[1] <= whole[1] / 2, "it was decoded at a part"
    off = np.abs(fast - exact)
    assert 0 < off.mean() < MOST_OFF_ON_AVERAGE
    assert off.max() < MOST_OFF


@pytest.mark.parametrize("channels", ["L", "BGR"])
def test_colours_are_the_models(channels: str) -> None:
    data = photo(1921)

    off = np.abs(
        decoded(data, channels=channels, decode="fast")[0] - decoded(data, channels=channels)[0]
    )

    assert off.mean() < MOST_OFF_ON_AVERAGE


@pytest.mark.parametrize(("width", "kind"), [(300, "JPEG"), (1921, "PNG"), (1921, "WEBP")])
def test_other_files_are_decoded_as_ever(width: int, kind: str) -> None:
    data = photo(width, kind)

    np.testing.assert_array_equal(decoded(data, decode="fast")[0], decoded(data)[0])


@pytest.mark.parametrize(
    ("key", "words", "wrong"),
    [
        ("image_decode", ("exact", "fast"), ("quick", "")),
        ("image_decode_in", ("api", "worker"), ("redis", "")),
        ("image_decoders", ("1", "64"), ("0", "65", "many")),
    ],
)
def test_the_config_names_one_of_the_ways(
    key: str, words: tuple[str, ...], wrong: tuple[str, ...]
) -> None:
    dims = "dims: [3, 4, 4]"
    message = text_format.Parse(
        f'max_batch_size: 1 input [ {{ name: "x" data_type: TYPE_FP32 {dims} }} ]',
        model_config_pb2.ModelConfig(),
    )
    parameters = {"input_kind": "image"}

    found = [read_image(message, parameters | {key: word}) for word in words]
    assert found[0] == read_image(message, parameters), "the first is the default"
    for word in wrong:
        with pytest.raises(ValueError, match=key.removeprefix("image_")):
            read_image(message, parameters | {key: word})
