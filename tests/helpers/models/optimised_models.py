"""Models and variants for the tests of `ferry optimise`: quick ones, slow ones, broken ones.

Their `make` functions run in other processes, which import them from here.
"""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from worker.optimise.quiet import quiet
from worker.optimise.tuning.task import Task
from worker.optimise.tuning.variants import Variant

CONFIG = """
# the operator's own comment
name: "busy"
platform: "pytorch_libtorch"
max_batch_size: 4
input [ { name: "x" data_type: TYPE_FP32 dims: [8] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [3] } ]
"""
BUSY = 30


class Busy(nn.Module):
    """A linear layer, and work that adds nothing to its answer."""

    def __init__(self, repeats: int, bias: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(8, 3)
        self.repeats = repeats
        self.bias = bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.layer(x) + self.bias * torch.arange(3.0)
        for _ in range(self.repeats):
            y = y + 0.0 * torch.ones(120, 120).matmul(torch.ones(120, 120)).sum()
        return y


def save(repeats: int, file: Path, bias: float = 0.0) -> None:
    script: Any = torch.jit.script
    with quiet():
        script(Busy(repeats, bias).eval()).save(str(file))


def make_repository(directory: Path) -> Path:
    (directory / "busy" / "1").mkdir(parents=True)
    (directory / "busy" / "config.pbtxt").write_text(CONFIG)
    save(BUSY, directory / "busy" / "1" / "model.pt")
    return directory


def quick(task: Task, _base: Path, file: Path) -> None:
    with (task.work.parent / "made").open("a") as made:
        made.write("quick\n")
    save(0, file)


def slow(_task: Task, _base: Path, file: Path) -> None:
    save(8 * BUSY, file)


def wrong(_task: Task, _base: Path, file: Path) -> None:
    save(0, file, bias=5.0)


def crash(*_: object) -> None:
    os.abort()


def hang(*_: object) -> None:
    time.sleep(600)


def floats_in_onnx(_task: Task, _base: Path, file: Path) -> None:
    layer = Busy(0).layer
    torch.onnx.export(
        layer, (torch.zeros(1, 8),), str(file), dynamo=False, input_names=["x"],
        output_names=["y"], dynamic_axes={"x": {0: "batch"}, "y": {0: "batch"}},
    )  # fmt: skip


def not_here(*_: object) -> str:
    return "it is for another machine"


script = partial(Variant, runtime="TorchScript", precision="FP32")
VARIANTS = (
    script(name="quick", make=quick),
    script(name="slow", make=slow),
    script(name="wrong", make=wrong),
    script(name="crash", make=crash),
    script(name="hang", make=hang),
    Variant("unproved", "ONNX Runtime", "INT8", floats_in_onnx),
    script(name="elsewhere", make=quick, why_not=not_here),
    script(name="made of it", make=quick, base="crash"),
)
