"""A Python model whose device dies for good on one value: every later call of its process raises.

As a GPU does after an assertion in a kernel, by what PyTorch and CUDA say then.
"""

from __future__ import annotations

from pathlib import Path

from formats_repository import TENSORS

POISON = 13.0
LOST = "CUDA error: device-side assert triggered"
SAYS_SO, SILENT = "device_fault", "nobody"
"""Whether it tells that its device is dead, or fails everything and says nothing."""

MODEL = """
import time


class Model:
    def __init__(self):
        self.is_dead = False

    def {probe}(self):
        return "{lost}" if self.is_dead else ""

    def forward(self, inputs):
        time.sleep({seconds})
        x = inputs["x"]
        if (x == -1).any():
            raise ValueError("negative")
        self.is_dead = self.is_dead or bool((x == {poison}).any())
        if self.is_dead:
            raise RuntimeError("a kernel failed")
        return {{"y": 2 * x}}
"""


def add_sticky(
    repository: Path,
    name: str = "sticky",
    *,
    probe: str = SAYS_SO,
    instances: int = 1,
    seconds: float = 0.0,
    max_batch_size: int = 8,
) -> Path:
    """Write one whose passes take `seconds`; return its file."""
    file = repository / name / "1" / "model.py"
    file.parent.mkdir(parents=True)
    source = MODEL.format(probe=probe, lost=LOST, seconds=seconds, poison=POISON)
    file.write_text(source)
    (repository / name / "config.pbtxt").write_text(
        f'backend: "python"\nmax_batch_size: {max_batch_size}\n{TENSORS}'
        f"instance_group [ {{ count: {instances} kind: KIND_CPU }} ]\n"
    )
    return file
