"""Ensembles and the small models they consist of, made by tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from scripted_models import write_model

Tensors = dict[str, str]


class Twice(torch.nn.Module):
    """Answers 2x."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2.0


class PlusOne(torch.nn.Module):
    """Answers x + 1, but raises when 13 is among the values."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert not bool((x == 13.0).any()), "13 is not to my taste"
        return x + 1.0


class Slowly(torch.nn.Module):
    """Answers x after a number of matrix products: the largest value of x."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        work = torch.ones(256, 256)
        for _ in range(int(x.max().item())):
            work = work @ work / 256.0
        return x + (work[0, 0] - work[0, 0])


class Both(torch.nn.Module):
    """Takes two tensors, returns their sum and their difference."""

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return a + b, a - b


class Step(NamedTuple):
    """One step of an ensemble; both maps go from the model's names to the ensemble's."""

    model: str
    inputs: Tensors
    outputs: Tensors
    version: int = -1


def x_to_y(model: str, source: str, target: str, version: int = -1) -> Step:
    """Return the step of a model that makes y of x."""
    return Step(model, {"x": source}, {"y": target}, version)


def tensors(kind: str, names: Sequence[str], dims: str = "[2]", datatype: str = "FP32") -> str:
    """Return `input` or `output` blocks."""
    return "\n".join(
        f'{kind} [ {{ name: "{name}" data_type: TYPE_{datatype} dims: {dims} }} ]' for name in names
    )


def ensemble_config(
    steps: Sequence[Step],
    *,
    inputs: Sequence[str] = ("in",),
    outputs: Sequence[str] = ("out",),
    max_batch_size: int = 8,
    input_dims: str = "[2]",
    more: str = "",
) -> str:
    """Return the `config.pbtxt` of an ensemble of FP32 tensors of two columns."""
    return "\n".join(
        [
            f'platform: "ensemble" max_batch_size: {max_batch_size}',
            tensors("input", inputs, input_dims),
            tensors("output", outputs),
            "ensemble_scheduling {",
            *map(_step, steps),
            "}",
            more,
        ]
    )


def add_ensemble(repository: Path, name: str, steps: Sequence[Step], **fields: Any) -> Path:
    """Write an ensemble with an empty version directory; return its `config.pbtxt`."""
    (repository / name / "1").mkdir(parents=True)
    config = repository / name / "config.pbtxt"
    config.write_text(ensemble_config(steps, **fields))
    return config


def add_small(
    repository: Path,
    name: str,
    module: torch.nn.Module,
    *,
    inputs: Sequence[str] = ("x",),
    outputs: Sequence[str] = ("y",),
    max_batch_size: int = 8,
) -> Path:
    """Serve `module` as `name`, FP32 tensors of two columns; return its file."""
    config = "\n".join(
        [
            f'platform: "pytorch_libtorch" max_batch_size: {max_batch_size}',
            tensors("input", inputs),
            tensors("output", outputs),
        ]
    )
    return write_model(repository, name, config, module)


def infer_body(value: float, outputs: Sequence[str] = (), **more: Any) -> dict[str, Any]:
    """Return the v2 body that asks for one row of `value`s as input `in`."""
    item = {"name": "in", "datatype": "FP32", "shape": [1, 2], "data": [value, value]}
    body: dict[str, Any] = {"inputs": [item], **more}
    return body | ({"outputs": [{"name": name} for name in outputs]} if outputs else {})


def _step(step: Step) -> str:
    maps = [
        f'{kind} {{ key: "{name}" value: "{tensor}" }}'
        for kind, names in (("input_map", step.inputs), ("output_map", step.outputs))
        for name, tensor in names.items()
    ]
    return (
        f'step [ {{ model_name: "{step.model}" model_version: {step.version} {" ".join(maps)} }} ]'
    )
