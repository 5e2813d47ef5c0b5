"""The variants, those first that gain most: what each is, where it applies, how it is made.

make(task, base, file)   writes the file, from the version itself or from the file of `base`
why_not(machine, task)   why it does not apply here, in a sentence; empty where it does
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from worker.optimise.tuning import onnx_files, torch_files
from worker.optimise.tuning.machine import Machine
from worker.optimise.tuning.task import Task

TORCH_BACKENDS = ("torchscript", "torch_state_dict", "torch_pickle", "torch_export")
ORIGINAL = "original"
ONNX_BACKEND = "onnxruntime"
SPARSITIES = (0.5, 0.8)
STATIC = "onnxruntime-int8-static"
EXCLUDED = (0.1, 0.25, 0.5)
"""Shares of the layers that stay in FP32, tried one after another where accuracy misses."""


def _anywhere(_machine: Machine, _task: Task) -> str:
    return ""


def _of_torch(_machine: Machine, task: Task) -> str:
    backend = task.model.config.backend
    return (
        ""
        if backend in TORCH_BACKENDS
        else f"the version is a model of {backend}, no module of torch"
    )


def _onnx(_machine: Machine, task: Task) -> str:
    is_onnx = task.model.config.backend == ONNX_BACKEND
    return "the version is an ONNX file itself" if is_onnx else ""


def _bf16(machine: Machine, task: Task) -> str:
    if not machine.has_bf16:
        return "this processor has no BF16 (avx512_bf16, amx_bf16): torch would emulate it, slower"
    return _of_torch(machine, task)


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
        return ONNX_BACKEND if self.runtime == "ONNX Runtime" else "torchscript"

    @property
    def filename(self) -> str:
        """Return the name of its file in a version's directory."""
        return "model.onnx" if self.backend == ONNX_BACKEND else "model.pt"


def _from_version(write: Callable[[Task, Path], None], task: Task, _base: Path, file: Path) -> None:
    write(task, file)


def _on_torch(
    name: str,
    precision: str,
    write: Callable[[Task, Path], None],
    why_not: Callable[[Machine, Task], str] = _of_torch,
) -> Variant:
    return Variant(name, "TorchScript", precision, partial(_from_version, write), why_not)


def _without_worst() -> Iterator[Variant]:
    """Yield static INT8 without the layers that it harms most, ever more of them."""
    before = STATIC
    for share in EXCLUDED:
        make = partial(onnx_files.static_int8_without_worst, share=share)
        name = f"{STATIC}-without-{100 * share:.0f}"
        note = f"{share:.0%} of the layers stay in FP32, those whose activations differ most"
        yield _on_onnx(name, "INT8", make, after=before, note=note)
        before = name


def _on_onnx(name: str, precision: str, make: Callable[..., None], **more: Any) -> Variant:
    return Variant(name, "ONNX Runtime", precision, make, base=ONNX_BACKEND, **more)


VARIANTS: tuple[Variant, ...] = (
    Variant(
        "onnxruntime", "ONNX Runtime", "FP32", partial(_from_version, onnx_files.export_onnx), _onnx
    ),
    _on_onnx(STATIC, "INT8", onnx_files.static_int8),
    *_without_worst(),
    _on_onnx("onnxruntime-int8-dynamic", "INT8", onnx_files.dynamic_int8),
    _on_torch("torchscript-bf16", "BF16", torch_files.bfloat16, _bf16),
    _on_onnx(
        "onnxruntime-int8-static-per-tensor", "INT8",
        partial(onnx_files.static_int8, per_channel=False),
    ),
    _on_torch("torchscript-channels-last", "FP32", torch_files.channels_last),
    _on_torch("torchscript-frozen", "FP32", torch_files.frozen),
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
