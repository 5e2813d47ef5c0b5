"""The pictures of `digits`: scikit-learn's handwriting split in two, and digits set in type."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

Pictures = NDArray[np.uint8]
Labels = NDArray[np.int64]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

SIDE = 32
SPLIT_SEED = 7
INK_LEVELS = 16
WRITTEN_SIDE = 64


def held_out() -> tuple[Pictures, Labels]:
    """Return the fifth never trained on: pictures [360, 8, 8], bright on dark 0..255, and labels.

    The split is stratified and the same on every call.
    """
    _, test = _split()
    return test


def training_handwriting() -> tuple[Pictures, Labels]:
    """Return the other four fifths: pictures [1437, 8, 8], bright on dark 0..255, and labels."""
    train, _ = _split()
    return train


def _split() -> tuple[tuple[Pictures, Labels], tuple[Pictures, Labels]]:
    ink, labels = load_digits(return_X_y=True)
    pictures = np.rint(ink.reshape(-1, 8, 8) * (255 / INK_LEVELS)).astype(np.uint8)
    train_pictures, test_pictures, train_labels, test_labels = train_test_split(
        pictures, labels.astype(np.int64), test_size=0.2, stratify=labels, random_state=SPLIT_SEED
    )
    return (train_pictures, train_labels), (test_pictures, test_labels)


def resize(picture: Pictures) -> Pictures:
    """Return `picture` [height, width] as [32, 32], resized as the server does it."""
    image = Image.fromarray(picture).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    return np.asarray(image)


def typeset_digits(heights: range, stroke_widths: range) -> tuple[Pictures, Labels]:
    """Return one [32, 32] bright-on-dark picture per digit, height and stroke width, and labels.

    Heights are font sizes and stroke widths extra boldness, both in pixels of a 128-pixel drawing.
    """
    pictures, labels = [], []
    for height in heights:
        font = ImageFont.load_default(size=height)
        for stroke_width in stroke_widths:
            for digit in range(10):
                pictures.append(resize(_typeset(digit, font, stroke_width)))
                labels.append(digit)
    return np.stack(pictures), np.array(labels, dtype=np.int64)


def _typeset(digit: int, font: Font, stroke_width: int) -> Pictures:
    image = Image.new("L", (128, 128), 0)
    draw = ImageDraw.Draw(image)
    draw.text((64, 64), str(digit), 255, font, anchor="mm", stroke_width=stroke_width)
    return np.asarray(image)


def write_pictures(directory: Path) -> list[Path]:
    """Write one held-out digit of each kind as digit-0.png to digit-9.png, 64 x 64; return them."""
    directory.mkdir(parents=True, exist_ok=True)
    pictures, labels = held_out()
    paths = []
    for digit in range(10):
        picture = pictures[int(np.argmax(labels == digit))]
        path = directory / f"digit-{digit}.png"
        size = (WRITTEN_SIDE, WRITTEN_SIDE)
        Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC).save(path)
        paths.append(path)
    return paths
