"""Tensors as a command line says them."""

from __future__ import annotations

import pytest

from worker.repository.adding.notation import Wanted, read_notation


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x:4", Wanted("x", (4,))),
        ("x:3x224x224", Wanted("x", (3, 224, 224))),
        ("x:[3,224,224]", Wanted("x", (3, 224, 224))),
        ("ids:-1:INT64", Wanted("ids", (-1,), "INT64")),
        ("ids:-1x8:TYPE_INT64", Wanted("ids", (-1, 8), "INT64")),
        ("ids:16:long", Wanted("ids", (16,), "INT64")),
        ("x:4:float32", Wanted("x", (4,), "FP32")),
        ("serving:x:0:4:FP16", Wanted("serving:x:0", (4,), "FP16")),
        ("text", Wanted("text", (1,), "BYTES")),
        ("review:text", Wanted("review", (1,), "BYTES")),
        ("words:8:STRING", Wanted("words", (8,), "BYTES")),
        ("image:3x32x32", Wanted("image", (3, 32, 32), is_image=True)),
        ("image:32x32x1", Wanted("image", (32, 32, 1), is_image=True)),
        ("x:1x28x28:image", Wanted("x", (1, 28, 28), is_image=True)),
        ("image:3x32x32:FP16", Wanted("image", (3, 32, 32), "FP16")),
    ],
)
def test_it_is_read(text: str, expected: Wanted) -> None:
    assert read_notation(text, "--input") == expected


@pytest.mark.parametrize(
    "text",
    ["x", "x:", ":4", "x:0", "x:-2", "x:4:", "x:4x", "x:4:FP33", "image:4", "image:2x8x8", "",
     "image:3x-1x-1", "x:4:complex64", "x:a"],
)  # fmt: skip
def test_what_is_none_names_the_option(text: str) -> None:
    with pytest.raises(ValueError, match=r"--output '"):
        read_notation(text, "--output")


def test_layout_and_channels_of_a_picture_follow_its_dims() -> None:
    first, last = (read_notation(text, "") for text in ("image:3x8x9", "image:8x9x1"))

    assert (first.layout, first.channels) == ("NCHW", 3)
    assert (last.layout, last.channels) == ("NHWC", 1)
