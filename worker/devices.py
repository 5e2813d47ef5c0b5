"""Where each instance of a model runs: which device, how many CPU threads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from shared.errors import BadModel
from worker.repository.config.groups import InstanceGroup

CPU_INFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Placement:
    """One instance's device (`cpu`, `cuda:0`, ...) and its CPU threads."""

    device: str
    threads: int = 1


def devices_of(
    groups: tuple[InstanceGroup, ...], gpu_count: int, *, allow_cpu: bool = False
) -> list[str]:
    """Return one device name per instance, as Triton places `instance_group`s.

    KIND_AUTO takes the GPUs when there are any; on GPUs `count` is per GPU. Raises BadModel when a
    group names a GPU that this machine does not have; with `allow_cpu` a machine without any runs
    such a group's `count` on the CPU instead.
    """
    devices: list[str] = []
    for group in groups:
        on_cpu = group.kind == "cpu" or (gpu_count == 0 and (allow_cpu or group.kind == "auto"))
        if on_cpu:
            devices += ["cpu"] * group.count
            continue
        gpus = group.gpus or tuple(range(gpu_count))
        if not gpus or max(gpus) >= gpu_count:
            raise BadModel(
                f"instance_group: {f'gpus {list(group.gpus)}' if group.gpus else 'KIND_GPU'}, "
                f"but this machine has {gpu_count} GPUs"
                + ("; FERRY_ALLOW_CPU_FALLBACK=1 runs it on the CPU" if gpu_count == 0 else "")
            )
        devices += [f"cuda:{gpu}" for gpu in gpus for _ in range(group.count)]
    return devices


def falls_back(groups: tuple[InstanceGroup, ...], gpu_count: int) -> bool:
    """Tell whether `allow_cpu` is why `devices_of` places a model's groups at all."""
    return gpu_count == 0 and any(group.kind == "gpu" for group in groups)


def cpu_threads(cpu_instance_count: int, core_count: int, configured: int) -> int:
    """Return one instance's threads: instances x threads never exceed the cores, unless told so.

    At least one, so more instances than cores do share.
    """
    return configured or max(1, core_count // max(1, cpu_instance_count))


def cpu_flags(info: Path = CPU_INFO) -> frozenset[str]:
    """Return the instruction sets of this machine's CPU as Linux calls them, as `avx2`."""
    try:
        lines = info.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return frozenset()
    found = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return frozenset(found.partition(":")[2].split())
