"""Save a module as TorchScript, whole or not at all; `digits` and `resnet` save theirs here too."""

import os
import warnings
from pathlib import Path

import torch
from torch import nn


def save_torchscript(module: nn.Module, example: torch.Tensor, path: Path) -> None:
    """Trace `module` in eval mode with `example` and write it to `path`, making its folder.

    The first dimension of `example` is the batch and stays free. The file is written under a
    temporary name and renamed last, so an interrupted run leaves no half-written model.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with warnings.catch_warnings(), torch.no_grad():
        # torch deprecates TorchScript as a whole, and "pytorch_libtorch" models are TorchScript.
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.trace(module.eval(), example).save(str(partial))  # type: ignore[no-untyped-call]
    os.replace(partial, path)
