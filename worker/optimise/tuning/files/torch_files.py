"""Variants for torch: TorchScript that is frozen, with the channels last, or in BF16."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from shared.errors import BadModel
from worker.backends.torch_arrays import to_torch
from worker.backends.torch_compiled import TorchScriptBackend
from worker.backends.torch_model import TorchBackend
from worker.backends.torch_state_dict import arguments_of, filled_module, load_module
from worker.instance.tensor_adapter import backend_spec
from worker.optimise.tuning.task import Task, feeds

TRACED_ROWS = 3
PICTURE_RANK = 4
"""Of weights that have channels in them."""


def torch_module(task: Task) -> nn.Module:
    """Return the original, else the version's module, in eval mode; raises BadModel without one."""
    model = task.model
    if task.made_from is not None:
        return task.made_from.make().eval()
    match model.config.backend:
        case "torchscript":
            load: Any = torch.jit.load  # has no types
            module: nn.Module = load(str(model.file), map_location="cpu")
        case "torch_state_dict":
            module = filled_module(model.spec, model.file)
        case "torch_pickle":
            module = load_module(model.file)
        case "torch_export":
            from worker.backends.programs.reading import load_program  # noqa: PLC0415  slow to import

            return load_program(model.file).module()  # type: ignore[no-any-return]
        case other:
            raise BadModel(f"a model of {other} has no module of torch")
    return module.eval()


def example_of(task: Task) -> dict[str, torch.Tensor]:
    """Return tensors for a few rows by input, in the order of forward's arguments."""
    spec = backend_spec(task.model.spec)
    rows = min(TRACED_ROWS, spec.batch_rows)
    arrays = feeds(task, task.rows.take(range(rows)))
    return {name: to_torch(arrays[name]) for name in _ordered(task)}


def _ordered(task: Task) -> list[str]:
    spec, model = backend_spec(task.model.spec), task.model
    backend = "" if task.made_from is not None else model.config.backend
    if backend == "torchscript":
        return TorchScriptBackend(spec, model.file, "cpu").input_names
    module = torch_module(task)
    takes = None if backend == "torch_export" else arguments_of(module)
    return TorchBackend(spec, module, takes, torch.device("cpu")).input_names


def frozen(task: Task, file: Path) -> None:
    """Write TorchScript whose weights are constants, with batch norms folded into convolutions."""
    _save(_scripted(task, torch_module(task)), file)


def channels_last(task: Task, file: Path) -> None:
    """Write frozen TorchScript whose convolutions have the channels last in memory."""
    module = torch_module(task)
    if not any(weight.ndim == PICTURE_RANK for weight in module.parameters()):
        raise BadModel("it has no convolution over pictures, whose channels could be last")
    module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    _save(_scripted(task, module), file)


def bfloat16(task: Task, file: Path) -> None:
    """Write frozen TorchScript that computes in BF16, its inputs and outputs as they were."""
    module = torch_module(task).to(torch.bfloat16)
    if any(weight.ndim == PICTURE_RANK for weight in module.parameters()):
        module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    dtypes = [tensor.dtype for tensor in _answers(torch_module(task), task)]
    example = tuple(example_of(task).values())
    _save(_traced(_Cast(module, dtypes), example), file)


class _Cast(nn.Module):
    """Computes in BF16 between inputs and outputs of other types."""

    def __init__(self, inner: nn.Module, dtypes: list[torch.dtype]) -> None:
        """Have `inner` do it; `dtypes` are those of its answers."""
        super().__init__()
        self.inner = inner
        self.dtypes = dtypes

    def forward(self, *tensors: torch.Tensor) -> Any:
        """Return the answer in the types of the original's."""
        cast = [each.to(torch.bfloat16) if each.is_floating_point() else each for each in tensors]
        answer = self.inner(*cast)
        if isinstance(answer, dict):
            cast_back = zip(answer.items(), self.dtypes, strict=True)
            return {name: each.to(dtype) for (name, each), dtype in cast_back}
        if isinstance(answer, torch.Tensor):
            return answer.to(self.dtypes[0])
        return tuple(each.to(dtype) for each, dtype in zip(answer, self.dtypes, strict=True))


def _answers(module: nn.Module, task: Task) -> list[torch.Tensor]:
    with torch.no_grad():
        answer = module(*example_of(task).values())
    if isinstance(answer, dict):
        return list(answer.values())
    return [answer] if isinstance(answer, torch.Tensor) else list(answer)


def _scripted(task: Task, module: nn.Module) -> Any:
    if isinstance(module, torch.jit.ScriptModule):
        return module
    return _traced(module, tuple(example_of(task).values()))


def _traced(module: nn.Module, example: tuple[torch.Tensor, ...]) -> Any:
    with torch.no_grad():
        return torch.jit.trace(  # type: ignore[no-untyped-call]
            module, example, check_trace=False, strict=False
        ).eval()


def _save(scripted: Any, file: Path) -> None:
    torch.jit.freeze(scripted).save(str(file))
