"""The machine that variants are made for: its processor's instruction sets, cores, compilers."""

from __future__ import annotations

import platform
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from shared.cores import default_cores
from worker.devices import CPU_INFO, cpu_flags

MEMORY_INFO = Path("/proc/meminfo")
DECIDING_FLAGS = (
    "avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile",
    "amx_int8", "amx_bf16", "asimd", "asimddp", "i8mm", "bf16", "sve",
)  # fmt: skip
"""The flags that decide what a variant is made of."""


@dataclass(frozen=True)
class Machine:
    """What a processor can do, in Linux' words for its instruction sets."""

    processor: str
    flags: frozenset[str]
    cores: int
    memory_bytes: int = 0
    gpus: tuple[str, ...] = ()
    compilers: tuple[str, ...] = ()

    @property
    def has_vnni(self) -> bool:
        """Tell whether 8-bit products are summed in 32 bits, so that none can overflow 16."""
        return bool({"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"} & self.flags)

    @property
    def has_bf16(self) -> bool:
        """Tell whether it multiplies BF16 itself."""
        return bool({"avx512_bf16", "amx_bf16", "bf16"} & self.flags)

    @property
    def is_arm(self) -> bool:
        """Tell whether ONNX Runtime has FP16 kernels for it, and wants signed activations."""
        return "asimd" in self.flags

    def as_json(self) -> dict[str, Any]:
        """Return the fields, of the flags those that decide."""
        shown = [flag for flag in DECIDING_FLAGS if flag in self.flags]
        return asdict(self) | {
            "flags": shown, "gpus": list(self.gpus), "compilers": list(self.compilers)
        }  # fmt: skip


def this_machine() -> Machine:
    """Return the machine that this process runs on."""
    lines = _lines(CPU_INFO)
    has_gpu = torch.cuda.is_available()
    gpus = [torch.cuda.get_device_name(at) for at in range(torch.cuda.device_count() * has_gpu)]
    return Machine(
        processor=_value(lines, "model name") or platform.processor() or platform.machine(),
        flags=cpu_flags(),
        cores=default_cores(),
        memory_bytes=memory_bytes("MemTotal"),
        gpus=tuple(gpus),
        compilers=tuple(name for name in ("g++", "clang++") if shutil.which(name)),
    )


def memory_bytes(field: str, file: Path = MEMORY_INFO) -> int:
    """Return a field of a file of Linux' that counts kilobytes, 0 where there is none."""
    return int((_value(_lines(file), field).split() or ["0"])[0]) * 1024


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _value(lines: list[str], key: str) -> str:
    found = (line.partition(":") for line in lines)
    return next((value.strip() for name, _, value in found if name.strip() == key), "")
