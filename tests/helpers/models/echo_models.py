"""Models that answer what they are given, one for each datatype, made by tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from onnx import TensorProto, helper
from stand_ins import onnx_graph, torchscript

CONFIG_TYPES = {"BYTES": "STRING"}
# Each datatype's edges, two rows of two.
VALUES: dict[str, list[Any]] = {
    "BOOL": [True, False, False, True],
    "UINT8": [0, 1, 254, 255],
    "UINT16": [0, 1, 2, 65535],
    "UINT32": [0, 1, 2, 2**32 - 1],
    "UINT64": [0, 1, 2**63, 2**64 - 1],
    "INT8": [-128, -1, 0, 127],
    "INT16": [-(2**15), -1, 0, 2**15 - 1],
    "INT32": [-(2**31), -1, 0, 2**31 - 1],
    "INT64": [-(2**63), -1, 0, 2**63 - 1],
    "FP32": [-1.5, 0.0, 3.4028234663852886e38, 1.401298464324817e-45],
    "FP64": [-1.5, 0.1, 1.7976931348623157e308, 5e-324],
    "BYTES": ["", "plain", "schön 好 👍", 'a\nb\t"c"'],
}


class Identity(torch.nn.Module):
    """Returns what it is given."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class Arithmetic(torch.nn.Module):
    """Takes two inputs, returns their sum and their difference."""

    def forward(self, b: torch.Tensor, a: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return a + b, a - b


def tensors(kind: str, *items: tuple[str, str, str]) -> str:
    """Return `input` or `output` of a config.pbtxt from (name, datatype, dims)."""
    return "\n".join(
        f'{kind} [ {{ name: "{name}" data_type: TYPE_{CONFIG_TYPES.get(datatype, datatype)} '
        f"dims: {dims} }} ]"
        for name, datatype, dims in items
    )


def config(max_batch_size: int, inputs: str, outputs: str) -> str:
    return f"max_batch_size: {max_batch_size}\n{inputs}\n{outputs}\n"


def add_echo(
    repository: Path, datatype: str, *, name: str = "", dims: str = "[2]", max_batch_size: int = 8
) -> None:
    """Serve `echo_<datatype>`: x comes back, as y from ONNX, which alone knows strings."""
    name = name or f"echo_{datatype}"
    output = "y" if datatype == "BYTES" else "x"
    text = config(
        max_batch_size,
        tensors("input", ("x", datatype, dims)),
        tensors("output", (output, datatype, dims)),
    )
    if datatype != "BYTES":
        torchscript(repository, name, Identity(), text)
        return
    strings = [helper.make_tensor_value_info(end, TensorProto.STRING, ["n", 2]) for end in "xy"]
    identity = helper.make_node("Identity", ["x"], ["y"])
    onnx_graph(repository, name, text, [identity], strings[:1], strings[1:])


def add_arithmetic(repository: Path) -> None:
    """Serve `arithmetic`: FP32 a and b of [2, 3] become their sum and their difference."""
    two = tensors("input", ("a", "FP32", "[2, 3]"), ("b", "FP32", "[2, 3]"))
    results = tensors("output", ("sum__0", "FP32", "[2, 3]"), ("difference__1", "FP32", "[2, 3]"))
    torchscript(repository, "arithmetic", Arithmetic(), config(4, two, results))
