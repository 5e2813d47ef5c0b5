"""Small TorchScript models and the directories they are served from, made by tests."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch


class Slow(torch.nn.Module):
    """Answers 2x after a number of matrix products: the largest value of x."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        work = torch.ones(256, 256)
        for _ in range(int(x.max().item())):
            work = work @ work / 256.0
        return x * 2.0 + (work[0, 0] - work[0, 0])


class Deadly(torch.nn.Module):
    """Answers 2x, but takes its process down when 13 is among the values: it reads far outside."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if bool((x == 13.0).any()):
            return torch.ops.inductor._reinterpret_tensor(x, [1], [1], 1 << 40) + x
        return x * 2.0


class Sluggish(torch.nn.Module):
    """Takes many seconds whatever is asked, also when it is warmed up."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        work = torch.ones(256, 256)
        for _ in range(100_000):
            work = work @ work / 256.0
        return x * 2.0 + (work[0, 0] - work[0, 0])


def add_model(
    repository: Path, module: torch.nn.Module, *, more: str = "", max_batch_size: int = 1
) -> Path:
    """Serve `module` under its class's name in lower case, FP32 x [2] to y [2]; return its file."""
    name = type(module).__name__.lower()
    return write_model(
        repository,
        name,
        f'name: "{name}" platform: "pytorch_libtorch" max_batch_size: {max_batch_size}\n'
        'input [ { name: "x" data_type: TYPE_FP32 dims: [2] } ]\n'
        f'output [ {{ name: "y" data_type: TYPE_FP32 dims: [2] }} ]\n{more}\n',
        module,
    )


def write_model(repository: Path, name: str, config: str, module: torch.nn.Module) -> Path:
    """Write `<name>/config.pbtxt` and `<name>/1/model.pt`; return the latter."""
    file = repository / name / "1" / "model.pt"
    file.parent.mkdir(parents=True)
    (repository / name / "config.pbtxt").write_text(config)
    save_scripted(module, file)
    return file


def save_scripted(module: torch.nn.Module, file: Path) -> None:
    """Compile `module` and save it."""
    script: Any = torch.jit.script
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        script(module).save(str(file))
