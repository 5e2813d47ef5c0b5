"""Turns a batch of pictures into the model's input, on the model's device."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from shared.datatypes import Array
from shared.model_spec import ImageInput, ModelSpec
from worker.backends.torch_arrays import to_numpy, to_torch, torch_type


class Normaliser:
    """Computes (pixel * scale - mean) / std, per channel, over a whole batch at once."""

    def __init__(
        self,
        image: ImageInput,
        device: torch.device,
        dtype: torch.dtype,
        shape: tuple[int, ...] | None = None,
    ) -> None:
        """Prepare mean and std on `device`, folded into one multiplication and one addition.

        `shape` is the input's in the model, if it is not [rows, ...] as the layout says.
        """
        mean = np.asarray(image.mean, dtype=np.float64)
        std = np.asarray(image.std, dtype=np.float64)
        self._factor = torch.tensor(image.scale / std, dtype=torch.float32, device=device)
        self._offset = torch.tensor(-mean / std, dtype=torch.float32, device=device)
        self._planes_first = image.layout == "NCHW"
        self._device = device
        self._dtype = dtype
        self._shape = shape
        self.channels_last = False
        """Whether planes first keep the memory of channels last, as the pixels come."""

    @classmethod
    def of(cls, spec: ModelSpec, device: torch.device) -> Normaliser | None:
        """Return the one for a model as its backend gets it; None unless it takes pictures."""
        if spec.image is None:
            return None
        declared = spec.inputs_by_name[spec.image.input]
        # -1 stands for the batch, or for the one picture of a model without
        shape = (-1, *declared.dims) if spec.batched else tuple(map(abs, declared.dims))
        return cls(spec.image, device, torch_type(declared.datatype), shape)

    def __call__(self, pixels: Array) -> torch.Tensor:
        """Return uint8 [rows, height, width, channels] as the model's own input tensor."""
        batch = to_torch(pixels).to(self._device, non_blocking=True)
        batch = batch.to(torch.float32) * self._factor + self._offset
        if self._planes_first:
            batch = batch.permute(0, 3, 1, 2)
            batch = batch if self.channels_last else batch.contiguous()
        if not self._dtype.is_floating_point:
            batch = batch.round()
        batch = batch.to(self._dtype)
        return batch if self._shape is None else batch.reshape(self._shape)


class PixelArrays:
    """A `Normaliser` for backends that take arrays, on the CPU, whatever the model's kind."""

    def __init__(self, spec: ModelSpec) -> None:
        """Prepare for the model's pictures, if it takes any."""
        self._normaliser = Normaliser.of(spec, torch.device("cpu"))

    def __call__(self, pixels: Array) -> Array:
        """Return uint8 [rows, height, width, channels] as the model's own input."""
        assert self._normaliser is not None, "pixels are made for image models only"
        return to_numpy(self._normaliser(pixels))


def own_arrays(
    inputs: Mapping[str, Array], pixels: frozenset[str], normalise: PixelArrays
) -> dict[str, Array]:
    """Return a batch as the operator's own code takes it: pictures normalised, all writable."""
    return {
        name: normalise(array) if name in pixels else np.require(array, requirements=["C", "W"])
        for name, array in inputs.items()
    }
