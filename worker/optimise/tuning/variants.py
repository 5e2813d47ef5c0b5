"""The variants, those first that gain most: what each is, where it applies, how it is made.

make(task, base, file)   writes the file, from the version itself or from the file of `base`
why_not(machine, task)   why it does not apply here, in a sentence; empty where it does
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from worker.optimise.tuning.files import onnx_files, program_files, torch_files
from worker.optimise.tuning.machine import Machine
from worker.optimise.tuning.task import Task

TORCH_BACKENDS = ("torchscript", "torch_state_dict", "torch_pickle", "torch_export")
ORIGINAL = "original"
NAME_ORIGINAL = "name what it was made from with --original package.module:callable"
ONNX_BACKEND = "onnxruntime"
SPARSITIES = (0.5, 0.8)
STATIC = "onnxruntime-int8-static"
DYNAMIC = "onnxruntime-int8-dynamic"
EXCLUDED = (0.1, 0.25, 0.5)
"""Shares of the layers that stay in FP32, tried one after another where accuracy misses."""


def _anywhere(_machine: Machine, _task: Task) -> str:
    return ""


def _of_torch(_machine: Machine, task: Task) -> str:
    backend = task.model.config.backend
    if task.made_from is not None or backend in TORCH_BACKENDS:
        return ""
    return f"the version is a model of {backend}, no module of torch: {NAME_ORIGINAL}"


def _of_python(machine: Machine, task: Task) -> str:
    if task.made_from is None and task.model.config.backend == "torchscript":
        return f"torch.export reads no TorchScript: {NAME_ORIGINAL}"
    return _of_torch(machine, task)


def _exported(machine: Machine, task: Task) -> str:
    is_program = task.model.config.backend == "torch_export"
    return "the version is an exported program itself" if is_program else _of_python(machine, task)


def _compiled(machine: Machine, task: Task) -> str:
    if not task.settings.allow_machine_code:
        return "it is machine code, which is made and served with FERRY_ALLOW_MACHINE_CODE=1 alone"
    return _of_python(machine, task)


def _onnx(_machine: Machine, task: Task) -> str:
    is_onnx = task.model.config.backend == ONNX_BACKEND
    return "the version is an ONNX file itself" if is_onnx else ""


def _bf16(machine: Machine, task: Task) -> str:
    if not machine.has_bf16:
        return "this processor has no BF16 (avx512_bf16, amx_bf16): torch would emulate it, slower"
    return _of_torch(machine, task)


class Runtime(NamedTuple):
    """What serves a variant, and the file that it wants."""

    backend: str
    filename: str


RUNTIMES = {
    "ONNX Runtime": Runtime(ONNX_BACKEND, "model.onnx"),
    "TorchScript": Runtime("torchscript", "model.pt"),
    "torch.export": Runtime("torch_export", "model.pt2"),
    "AOTInductor": Runtime("torch_aoti", "model.pt2"),
}


@dataclass(frozen=True)
class Variant:
    """One way to run a model: the runtime, the precision, and how its file is made."""

    name: str
    runtime: str
    precision: str
    make: Callable[[Task, Path, Path], None]
    why_not: Callable[[Machine, Task], str] = _anywhere
    base: str = ""
    note: str = ""
    after: str = ""
    """The variant that has to miss its limits before this one is worth trying."""
    is_lossy: bool = False
    """Whether it answers otherwise by more than rounding, though its precision does not say so."""
    kernels_in: str = ""
    """The precision of the kernels, where it is not that of the weights."""

    @property
    def kernel_precision(self) -> str:
        """Return the precision that its layers must be proved to run in."""
        return self.kernels_in or self.precision

    @property
    def backend(self) -> str:
        """Return the backend that serves it."""
        return RUNTIMES[self.runtime].backend

    @property
    def filename(self) -> str:
        """Return the name of its file in a version's directory."""
        return RUNTIMES[self.runtime].filename


def _from_version(write: Callable[[Task, Path], None], task: Task, _base: Path, file: Path) -> None:
    write(task, file)


def _on_torch(
    name: str,
    precision: str,
    write: Callable[[Task, Path], None],
    why_not: Callable[[Machine, Task], str] = _of_torch,
    runtime: str = "TorchScript",
) -> Variant:
    return Variant(name, runtime, precision, partial(_from_version, write), why_not)


def _without_worst(name: str, make: Callable[..., None]) -> Iterator[Variant]:
    """Yield a kind of INT8 without the layers that it harms most, ever more of them."""
    before = name
    for share in EXCLUDED:
        without = partial(onnx_files.without_worst, make=make, share=share)
        less = f"{name}-without-{100 * share:.0f}"
        note = f"{share:.0%} of the layers stay in FP32, those whose activations differ most"
        yield _on_onnx(less, "INT8", without, after=before, note=note)
        before = less


def _on_onnx(name: str, precision: str, make: Callable[..., None], **more: Any) -> Variant:
    return Variant(name, "ONNX Runtime", precision, make, base=ONNX_BACKEND, **more)


VARIANTS: tuple[Variant, ...] = (
    Variant(
        "onnxruntime", "ONNX Runtime", "FP32", partial(_from_version, onnx_files.export_onnx), _onnx
    ),
    _on_onnx(STATIC, "INT8", onnx_files.static_int8),
    _on_onnx(
        "onnxruntime-int8-static-per-tensor", "INT8",
        partial(onnx_files.static_int8, per_channel=False),
    ),
    _on_onnx(DYNAMIC, "INT8", onnx_files.dynamic_int8),
    _on_torch("torchscript-bf16", "BF16", torch_files.bfloat16, _bf16),
    *_without_worst(DYNAMIC, onnx_files.dynamic_int8),
    *_without_worst(STATIC, onnx_files.static_int8),
    _on_torch("aoti", "FP32", program_files.compiled, _compiled, "AOTInductor"),
    _on_torch("torchscript-channels-last", "FP32", torch_files.channels_last),
    _on_torch("torchscript-frozen", "FP32", torch_files.frozen),
    _on_torch("exported", "FP32", program_files.exported, _exported, "torch.export"),
    _on_onnx(
        "onnxruntime-fp16", "FP16", onnx_files.half_precision, kernels_in="FP32",
        note="a smaller file: ONNX Runtime computes in FP32 on this processor",
    ),
    *(
        _on_onnx(
            f"onnxruntime-pruned-{sparsity:.0%}".replace("%", ""), "FP32",
            partial(onnx_files.pruned, sparsity=sparsity),
            note=f"{sparsity:.0%} of the weights are zero: the compressed file alone is smaller, "
            "no kernel skips zeros",
            is_lossy=True,
        )
        for sparsity in SPARSITIES
    ),
)  # fmt: skip
