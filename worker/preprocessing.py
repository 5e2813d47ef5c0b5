"""Turns a batch of pictures into the model's input, on the model's device."""

from __future__ import annotations

import numpy as np
import torch

from shared.datatypes import Array
from shared.model_spec import ImageInput
from worker.tensors import to_torch


class Normaliser:
    """Computes (pixel * scale - mean) / std, per channel, over a whole batch at once."""

    def __init__(self, image: ImageInput, device: torch.device, dtype: torch.dtype) -> None:
        """Prepare mean and std on `device`, folded into one multiplication and one addition."""
        mean = np.asarray(image.mean, dtype=np.float64)
        std = np.asarray(image.std, dtype=np.float64)
        self._factor = torch.tensor(image.scale / std, dtype=torch.float32, device=device)
        self._offset = torch.tensor(-mean / std, dtype=torch.float32, device=device)
        self._planes_first = image.layout == "NCHW"
        self._device = device
        self._dtype = dtype

    def __call__(self, pixels: Array) -> torch.Tensor:
        """Return uint8 [rows, height, width, channels] as the model's own input tensor."""
        batch = to_torch(pixels).to(self._device, non_blocking=True)
        batch = batch.to(torch.float32) * self._factor + self._offset
        if self._planes_first:
            batch = batch.permute(0, 3, 1, 2).contiguous()
        return batch.to(self._dtype)
