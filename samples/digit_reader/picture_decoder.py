"""The model `picture_decoder`: encoded pictures to what `digits` takes.

It is served as a file, by Ferry's Python backend, and needs Pillow where the worker runs.
"""

from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image, ImageOps

SIDE = 32
MAX_PIXELS = 40_000_000
"""A small file may hold a huge picture."""


class Model:
    """BYTES [rows, 1] to FP32 [rows, 1, 32, 32]: grey, stretched, from -1 to 1."""

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Open and prepare each picture. One that is none raises, and fails alone."""
        pictures = [prepare(bytes(row[0])) for row in inputs["picture"]]
        return {"image": np.stack(pictures)[:, None]}


def prepare(encoded: bytes) -> Any:
    """Return one picture as FP32 [32, 32], with the arithmetic of the sample `digits`."""
    with Image.open(BytesIO(encoded)) as opened:
        if opened.width * opened.height > MAX_PIXELS:
            raise ValueError(f"a picture of {opened.width} x {opened.height} pixels is too large")
        upright = ImageOps.exif_transpose(opened)
        if upright.has_transparency_data:
            paper = Image.new("RGBA", upright.size, "white")
            upright = Image.alpha_composite(paper, upright.convert("RGBA"))
        grey = upright.convert("L").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    return (np.asarray(grey, np.float32) / 255 - 0.5) / 0.5
