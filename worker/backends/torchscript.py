"""TorchScript models: `torch.jit.save`d, traced or scripted.

A module of its own, as every format has one.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch

from shared.model_spec import ModelSpec
from worker.backends.torch_model import Argument, TorchBackend


class TorchScriptBackend(TorchBackend):
    """A TorchScript module in eval mode."""

    def __init__(self, spec: ModelSpec, file: Path, device: str) -> None:
        """Load `file`; raises RuntimeError when it is no TorchScript archive."""
        target = torch.device(device)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            load: Any = torch.jit.load  # has no types
            module: Any = load(str(file), map_location=target).eval()
        arguments = [
            Argument(
                each.name,
                has_default=each.has_default_value(),
                takes_none=each.type.kind() == "OptionalType",
                is_tensor=each.type.kind() == "TensorType",
            )
            for each in module.forward.schema.arguments[1:]
        ]
        super().__init__(spec, module.forward, arguments, target)
