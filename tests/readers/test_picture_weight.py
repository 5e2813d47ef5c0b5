"""The cost of reading a picture is told from its bytes: how many, how many pieces and scans."""

from __future__ import annotations

import io

import numpy as np
import pytest
from heavy_pictures import HEADS, picture
from PIL import Image
from registered import spec

from shared.errors import BadRequest
from shared.inputs.picture_weight import SMALL_BYTES, is_light
from shared.inputs.pictures import open_batch, picture_batch
from shared.model_spec import ImageInput, TensorSpec

MODEL = spec(
    "pictures",
    TensorSpec(name="image", datatype="UINT8", dims=(3, 8, 8)),
    image=ImageInput(input="image", height=8, width=8),
)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_what_cameras_and_tools_write_is_light(kind: str) -> None:
    data = picture(300, kind)
    assert len(data) > SMALL_BYTES

    assert is_light(data)
    assert is_light(memoryview(data))


def test_a_progressive_jpeg_is_light() -> None:
    assert is_light(picture(300, "JPEG", progressive=True))


@pytest.mark.parametrize("what", HEADS)
def test_a_file_of_many_pieces_is_not(what: str) -> None:
    kind, at, pieces = HEADS[what]
    data = picture(8, kind)

    assert is_light(data)
    assert not is_light(data[:at] + pieces + data[at:])


@pytest.mark.parametrize(("kind", "spare"), [("JPEG", 4), ("BMP", 4), ("PNG", 16), ("TIFF", 16)])
def test_a_file_may_have_no_more_bytes_than_its_pixels_can_need(kind: str, spare: int) -> None:
    data = picture(8, kind)
    most = 8 * 8 * 8 + spare * 2**20

    assert open_batch([data.ljust(most, b"\0")], MODEL).pixels == 64
    with pytest.raises(BadRequest, match=f"has {most + 1} bytes, a {kind} of 8 x 8 pixels at most"):
        open_batch([data.ljust(most + 1, b"\0")], MODEL)


def test_16_bits_become_8_in_strips_as_they_do_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(1).integers(0, 2**16, (40, 30), np.uint16)
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG", transparency=int(values[5, 5]))
    whole = picture_batch([buffer.getvalue()], MODEL)

    monkeypatch.setattr("shared.inputs.colours.STRIP_PIXELS", 100)

    assert picture_batch([buffer.getvalue()], MODEL) == whole
