"""TorchScript models: `torch.jit.save`d, traced or scripted."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from shared.datatypes import Array
from shared.errors import BadModelOutput
from shared.model_spec import ModelSpec
from worker.preprocessing import Normaliser
from worker.tensors import to_numpy, to_torch, torch_type

INDEXED = re.compile(r"__(\d+)$")


class TorchScriptBackend:
    """A TorchScript module in eval mode on one device, run under `inference_mode`."""

    def __init__(self, spec: ModelSpec, file: Path, device: str) -> None:
        """Load `file`; raises RuntimeError when it is no TorchScript archive."""
        self._device = torch.device(device)
        self._on_cpu = self._device.type == "cpu"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            load: Any = torch.jit.load  # has no types
            self._module: Any = load(str(file), map_location=self._device).eval()
        self._inputs = _by_position([tensor.name for tensor in spec.inputs], self._arguments())
        self._outputs = _by_position([tensor.name for tensor in spec.outputs], [])
        self._normaliser = (
            Normaliser(spec.image, self._device, torch_type(spec.inputs[0].datatype))
            if spec.image
            else None
        )

    def forward(self, inputs: Mapping[str, Array], pixels: frozenset[str]) -> dict[str, Array]:
        """Run one batch; see `Backend.forward`."""
        if torch.is_grad_enabled():
            with torch.inference_mode():
                return self._forward(inputs, pixels)
        return self._forward(inputs, pixels)

    def _forward(self, inputs: Mapping[str, Array], pixels: frozenset[str]) -> dict[str, Array]:
        tensors = [self._tensor(inputs[name], name in pixels) for name in self._inputs]
        answer = self._module.forward(*tensors)
        return {name: to_numpy(tensor) for name, tensor in self._named(answer).items()}

    def _tensor(self, array: Array, is_pixels: bool) -> torch.Tensor:
        if is_pixels:
            assert self._normaliser is not None, "pixels are made for image models only"
            return self._normaliser(array)
        tensor = to_torch(array)
        return tensor if self._on_cpu else tensor.to(self._device, non_blocking=True)

    def _named(self, answer: Any) -> dict[str, torch.Tensor]:
        if isinstance(answer, dict):
            return {name: answer[name] for name in self._outputs}
        found = [answer] if isinstance(answer, torch.Tensor) else list(answer)
        if len(found) < len(self._outputs):
            raise BadModelOutput(
                f"the model returned {len(found)} tensors, its config declares {self._outputs}"
            )
        return dict(zip(self._outputs, found, strict=False))

    def _arguments(self) -> list[str]:
        return [argument.name for argument in self._module.forward.schema.arguments[1:]]


def _by_position(names: list[str], arguments: list[str]) -> list[str]:
    """Order tensor names by argument name, else by `NAME__<index>`, else as the config lists them.

    Source: Triton's naming convention for its PyTorch backend.
    """
    if set(names) == set(arguments):
        return arguments
    indexed = {name: INDEXED.search(name) for name in names}
    if all(indexed.values()):
        return sorted(names, key=lambda name: int(indexed[name].group(1)))  # type: ignore[union-attr]
    return names
