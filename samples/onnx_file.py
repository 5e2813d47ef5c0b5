"""Writes a network of pictures as one ONNX file."""

import os
import warnings
from pathlib import Path

import torch
from torch import nn


def save_onnx(network: nn.Module, example: torch.Tensor, path: Path) -> None:
    """Export `input` to `output`, weights inside, batch dimension free; renamed last when whole."""
    partial = path.with_name(path.name + ".partial")
    with warnings.catch_warnings():
        # The exporter of torch 2.13 uses its own deprecated parts; nothing here can change that.
        warnings.simplefilter("ignore", FutureWarning)
        torch.onnx.export(
            network,
            (example,),
            partial,
            input_names=["input"],
            output_names=["output"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    os.replace(partial, path)
