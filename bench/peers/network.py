"""The samples' TorchScript files as the other servers call them; nothing of Ferry is imported.

A client sends `tiny` sixteen numbers as JSON and `resnet18` a JPEG. Each process has one thread, as
two processes with one each serve more pictures on two cores than one with two.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from PIL import Image

Pixels = np.ndarray[Any, np.dtype[np.float32]]
SIDE, CROP = 256, 224
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)


def load(model: str) -> Any:
    """Return the file of a sample's model, read from the repository that MODELS names."""
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    read: Any = torch.jit.load  # has no types
    return read(Path(os.environ["MODELS"]) / model / "1" / "model.pt").eval()


def numbers(model: Any, data: list[list[float]]) -> list[list[float]]:
    """Return `tiny`'s answers to rows of numbers."""
    answer: list[list[float]] = model(torch.tensor(data, dtype=torch.float32)).tolist()
    return answer


def picture(data: bytes) -> Pixels:
    """Return a JPEG as torchvision's usual transforms make it: [3, 224, 224]."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    scale = SIDE / min(image.size)
    image = image.resize(
        (round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR
    )
    left, top = (image.width - CROP) // 2, (image.height - CROP) // 2
    image = image.crop((left, top, left + CROP, top + CROP))
    pixels = np.asarray(image, np.float32) / 255
    return np.ascontiguousarray(((pixels - MEAN) / DEVIATION).transpose(2, 0, 1))


def classes(model: Any, pictures: list[Pixels]) -> list[dict[str, float]]:
    """Return the likeliest class of each picture, from one pass."""
    shares = torch.softmax(model(torch.from_numpy(np.stack(pictures))), 1)
    best, index = shares.max(1)
    return [
        {"class": number, "confidence": share}
        for number, share in zip(index.tolist(), best.tolist(), strict=True)
    ]
