"""Many pixels are decoded in a thread, since gevent's loop would stand still meanwhile."""

from __future__ import annotations

import io
from threading import get_ident
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile
from registered import spec

from shared.errors import BadRequest
from shared.inputs import pictures
from shared.inputs.pictures import picture_batch
from shared.model_spec import ImageInput, TensorSpec

MODEL = spec(
    "pictures",
    TensorSpec(name="image", datatype="UINT8", dims=(3, 8, 8)),
    image=ImageInput(input="image", height=8, width=8),
)


def picture(side: int, colour: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (colour, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The threads that decoded a picture, one for each; gevent runs, as in the API."""
    found: list[int] = []
    load = ImageFile.ImageFile.load

    def noted(opened: ImageFile.ImageFile) -> Any:
        found.append(get_ident())
        return load(opened)

    monkeypatch.setattr(ImageFile.ImageFile, "load", noted)
    monkeypatch.setattr(pictures, "_in_event_loop", lambda: True)
    return found


def test_a_large_picture_is_decoded_in_a_thread(threads: list[int]) -> None:
    picture_batch([picture(1100)], MODEL)

    assert threads and get_ident() not in threads


def test_pictures_that_are_large_together_are_decoded_in_one_thread_and_in_order(
    threads: list[int],
) -> None:
    batch = picture_batch([picture(600, colour) for colour in (1, 2, 3)], MODEL)

    assert len(set(threads)) == 1 and get_ident() not in threads
    assert batch.array()[:, 0, 0, 0].tolist() == [1, 2, 3]


def test_a_small_picture_is_decoded_without_a_change_of_threads(threads: list[int]) -> None:
    picture_batch([picture(500)], MODEL)

    assert set(threads) == {get_ident()}


def test_without_gevent_no_thread_is_used(
    threads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "_in_event_loop", lambda: False)

    picture_batch([picture(1100)], MODEL)

    assert set(threads) == {get_ident()}


def test_what_a_thread_cannot_decode_is_refused_and_leaves_no_trace(
    threads: list[int], capfd: pytest.CaptureFixture[str]
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1100, 1100, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "JPEG")

    with pytest.raises(BadRequest, match="picture 1 cannot be decoded"):
        picture_batch([picture(8), buffer.getvalue()[: buffer.tell() // 2]], MODEL)

    assert get_ident() not in threads
    assert capfd.readouterr().err == ""
