"""Write the model directory of `tiny`: 16 floats in, 3 floats out, seeded random weights."""

from pathlib import Path

import torch
from torch import nn

from samples.tiny.torchscript import save_torchscript

SEED = 20
CONFIG = """\
name: "tiny"
platform: "pytorch_libtorch"
max_batch_size: 32
input [ { name: "INPUT__0" data_type: TYPE_FP32 dims: [16] } ]
output [ { name: "OUTPUT__0" data_type: TYPE_FP32 dims: [3] } ]
dynamic_batching { max_queue_delay_microseconds: 0 }
"""


def make(directory: Path) -> None:
    """Write `directory`/config.pbtxt and `directory`/1/model.pt, the same on every run."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.pbtxt").write_text(CONFIG, encoding="utf-8")
    save_torchscript(build(), torch.zeros(2, 16), directory / "1" / "model.pt")


def build() -> nn.Module:
    """Return the network [batch, 16] -> [batch, 3] with seeded weights; global seeds stay put."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 3))
