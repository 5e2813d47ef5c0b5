"""Pictures of every mode, size, orientation and format get the same right answer."""

from __future__ import annotations

import gc
import io
import warnings
from typing import Any

import numpy as np
import pytest
from answers import answer
from flask.testing import FlaskClient
from picture_bytes import encoded
from PIL import Image
from registered import spec

from samples.digits import held_out
from shared.datatypes import Array
from shared.inputs.pictures import picture_batch
from shared.model_spec import ImageInput

PREDICT = "/predict/digits"
RGB = ImageInput(input="image", height=4, width=6)
EXIF_ORIENTATION = 0x0112
# What turns an upright picture into one that is stored with the tag (EXIF 2.32, 4.6.4).
STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def digit(wanted: int, side: int = 96) -> Image.Image:
    """Return a held-out handwritten digit, dark on white, mode L."""
    pictures, labels = held_out()
    first = 255 - pictures[int(np.argmax(labels == wanted))]
    return Image.fromarray(first).resize((side, side), Image.Resampling.BICUBIC)


def classify(client: FlaskClient, data: bytes) -> Any:
    return answer(client.post(PREDICT, data=data))


def upload(client: FlaskClient, *files: bytes, query: str = "") -> Any:
    parts = [(io.BytesIO(data), f"{index}.png") for index, data in enumerate(files)]
    return answer(client.post(PREDICT + query, data={"file": parts}))


def transparent(picture: Image.Image, mode: str) -> Image.Image:
    """Return the picture as ink on nothing: black everywhere, the ink in the alpha channel."""
    ink = picture.point(lambda value: 255 - value)
    black = Image.new("L", picture.size, 0)
    if mode == "LA":
        return Image.merge("LA", (black, ink))
    return Image.merge("RGBA", (black, black, black, ink))


def palette_with_transparent_paper(picture: Image.Image) -> Image.Image:
    """Return a palette picture whose paper is black and fully transparent."""
    pixels = np.where(np.asarray(picture) < 128, 1, 0).astype(np.uint8)
    palette = Image.fromarray(pixels, "P")
    palette.putpalette([0, 0, 0, 10, 10, 10] + [0] * 762)
    return palette


# The right digit.


def test_98_of_100_held_out_digits_are_recognised(client: FlaskClient) -> None:
    pictures, labels = held_out()
    found = []
    for start in range(0, len(pictures), 32):
        files = [encoded(Image.fromarray(picture)) for picture in pictures[start : start + 32]]
        found += [row["class"] for row in upload(client, *files)["predictions"]]

    assert len(found) == len(labels)
    assert float((np.array(found) == labels).mean()) >= 0.98


@pytest.mark.parametrize("wanted", range(10))
def test_a_raw_body_is_recognised(client: FlaskClient, wanted: int) -> None:
    body = classify(client, encoded(digit(wanted)))

    assert (body["class"], body["label"]) == (wanted, str(wanted))
    assert 0.5 < body["confidence"] <= 1.0


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1"])
def test_every_mode_of_png_is_recognised(client: FlaskClient, mode: str) -> None:
    assert classify(client, encoded(digit(3).convert(mode)))["class"] == 3


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_ink_in_the_alpha_channel_is_seen_on_the_background(client: FlaskClient, mode: str) -> None:
    assert classify(client, encoded(transparent(digit(3), mode)))["class"] == 3


def test_a_palette_with_transparent_paper_is_recognised(client: FlaskClient) -> None:
    data = encoded(palette_with_transparent_paper(digit(3)), transparency=0)

    assert classify(client, data)["class"] == 3


def test_16_bit_grey_is_recognised(client: FlaskClient) -> None:
    deep = Image.fromarray(np.asarray(digit(3)).astype(np.uint16) * 257)

    assert deep.mode == "I;16"
    assert classify(client, encoded(deep))["class"] == 3


@pytest.mark.parametrize("mode", ["CMYK", "RGB", "L", "YCbCr"])
def test_every_mode_of_jpeg_is_recognised(client: FlaskClient, mode: str) -> None:
    picture = digit(3).convert("RGB").convert(mode)

    assert classify(client, encoded(picture, "JPEG", quality=95))["class"] == 3


@pytest.mark.parametrize("kind", ["WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_every_format_is_recognised(client: FlaskClient, kind: str) -> None:
    assert classify(client, encoded(digit(3).convert("RGB"), kind))["class"] == 3


def test_the_first_picture_of_an_animation_is_taken(client: FlaskClient) -> None:
    data = encoded(digit(3), "GIF", save_all=True, append_images=[digit(4), digit(5)])

    assert classify(client, data)["class"] == 3


@pytest.mark.parametrize("side", [8, 31, 500, 3000])
def test_small_and_large_pictures_are_recognised(client: FlaskClient, side: int) -> None:
    assert classify(client, encoded(digit(3, side)))["class"] == 3


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("size", [(1, 1), (1000, 3), (3, 1000), (4000, 2500)])
def test_a_picture_of_any_size_is_answered(
    client: FlaskClient, size: tuple[int, int], kind: str
) -> None:
    body = classify(client, encoded(Image.new("RGB", size, "white"), kind))

    assert body["class"] in range(10)


@pytest.mark.parametrize("tag", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_every_orientation_tag_gives_the_same_digit(
    client: FlaskClient, tag: int, kind: str
) -> None:
    # Wide, so that a tag that is not obeyed shows; the 7 is upside down under four of them.
    upright = Image.new("L", (128, 96), 255)
    upright.paste(digit(7), (24, 0))
    transposition = STORED[tag]
    stored = upright if transposition is None else upright.transpose(transposition)
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = tag

    body = classify(client, encoded(stored, kind, exif=exif.tobytes()))

    assert body["class"] == 7


# What is answered.


def test_several_files_are_answered_in_order(client: FlaskClient) -> None:
    wanted = [7, 1, 8, 0, 3, 3, 9]

    body = upload(client, *(encoded(digit(number)) for number in wanted))

    assert [row["class"] for row in body["predictions"]] == wanted
    assert body["timings"]["batch_size"] >= len(wanted)


def test_one_file_is_answered_like_a_raw_body(client: FlaskClient) -> None:
    data = encoded(digit(4))

    uploaded, raw = upload(client, data), classify(client, data)

    assert uploaded.pop("timings") and raw.pop("timings")
    assert uploaded == raw


def test_a_large_upload_leaves_no_file_open(client: FlaskClient) -> None:
    # Written by hand, since the test client's own encoder leaves such a file open itself.
    head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n'
    noise = encoded(Image.effect_noise((1000, 1000), 90))
    body = head + noise + b"\r\n--x--\r\n"
    assert len(body) > 600_000

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        response = client.post(PREDICT, data=body, content_type="multipart/form-data; boundary=x")
        gc.collect()

    assert answer(response)["class"] in range(10)
    assert not [warning for warning in caught if warning.category is ResourceWarning]


def test_batched_pictures_get_the_answers_they_get_alone(client: FlaskClient) -> None:
    files = [encoded(digit(number)) for number in range(10)]

    together = upload(client, *files)["predictions"]

    for row, data in zip(together, files, strict=True):
        alone = classify(client, data)
        assert row["class"] == alone["class"]
        assert row["confidence"] == pytest.approx(alone["confidence"], abs=1e-4)


def test_an_answer_says_who_made_it_and_what_it_cost(client: FlaskClient) -> None:
    response = client.post(PREDICT, data=encoded(digit(5)))

    body = answer(response)
    assert set(body) == {"class", "label", "confidence", "top_k", "model", "version", "timings"}
    assert (body["model"], body["version"]) == ("digits", "1")
    timings = body["timings"]
    assert min(timings[key] for key in timings if key.endswith("_seconds")) >= 0
    assert timings["batch_size"] >= 1 and timings["attempts"] == 1 and timings["instance"]
    assert f'instance;desc="{timings["instance"]}"' in response.headers["Server-Timing"]
    assert "queue;dur=" in response.headers["Server-Timing"]


@pytest.mark.parametrize(("query", "count"), [("", 3), ("?top_k=1", 1), ("?top_k=100", 10)])
def test_top_k_says_how_many_classes_are_named(client: FlaskClient, query: str, count: int) -> None:
    body = upload(client, encoded(digit(6)), query=query)

    top = body["top_k"]
    assert len(top) == count
    assert top[0] == {key: body[key] for key in ("class", "label", "confidence")}
    assert [entry["confidence"] for entry in top] == sorted(
        (entry["confidence"] for entry in top), reverse=True
    )


def test_confidences_of_all_classes_sum_to_one(client: FlaskClient) -> None:
    body = upload(client, encoded(digit(6)), query="?top_k=10")

    assert sum(entry["confidence"] for entry in body["top_k"]) == pytest.approx(1.0, abs=1e-4)


def test_curls_own_content_type_does_not_hide_a_raw_picture(client: FlaskClient) -> None:
    form = "application/x-www-form-urlencoded"
    response = client.post(PREDICT, data=encoded(digit(2)), content_type=form)

    assert answer(response)["class"] == 2


# Decoding alone, checked pixel by pixel.


def decoded_file(data: bytes, image: ImageInput = RGB) -> Array:
    return picture_batch([data], spec("pictures", image=image)).array()


def decoded(picture: Image.Image, image: ImageInput = RGB, **options: Any) -> Array:
    pixels = decoded_file(encoded(picture, **options), image)
    assert pixels.shape == (1, image.height, image.width, len(image.channels))
    assert pixels.dtype == np.uint8
    return pixels


def test_a_picture_of_the_right_size_is_passed_on_as_it_is() -> None:
    pixels = np.arange(72, dtype=np.uint8).reshape(4, 6, 3)

    assert np.array_equal(decoded(Image.fromarray(pixels))[0], pixels)


def test_bgr_reverses_the_channels() -> None:
    pixels = np.arange(72, dtype=np.uint8).reshape(4, 6, 3)

    bgr = decoded(Image.fromarray(pixels), RGB.model_copy(update={"channels": "BGR"}))

    assert np.array_equal(bgr[0], pixels[..., ::-1])


def test_half_transparent_red_on_blue_is_their_mixture() -> None:
    blue = RGB.model_copy(update={"background": (0, 0, 255)})

    pixels = decoded(Image.new("RGBA", (6, 4), (255, 0, 0, 128)), blue)

    assert np.unique(pixels.reshape(-1, 3), axis=0).tolist() == [[128, 0, 127]]


def test_a_single_transparent_colour_shows_the_background() -> None:
    pixels = decoded(Image.new("RGB", (6, 4), (1, 2, 3)), transparency=(1, 2, 3))

    assert np.unique(pixels).tolist() == [255]


def test_a_picture_is_padded_with_the_background() -> None:
    pad = RGB.model_copy(update={"resize": "pad", "background": (0, 0, 255)})

    pixels = decoded(Image.new("RGB", (40, 40), (255, 0, 0)), pad)

    assert pixels[0, :, 0].tolist() == [[0, 0, 255]] * 4
    assert pixels[0, :, 2].tolist() == [[255, 0, 0]] * 4


@pytest.mark.parametrize("size", [(1, 1), (20_000, 1), (1, 20_000)])
@pytest.mark.parametrize("resize", ["stretch", "crop", "pad"])
def test_every_way_to_resize_takes_any_size(size: tuple[int, int], resize: str) -> None:
    decoded(Image.new("L", size), RGB.model_copy(update={"resize": resize}))
