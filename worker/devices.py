"""Where each instance of a model runs: which device, how many CPU threads."""

from __future__ import annotations

from dataclasses import dataclass

from shared.errors import BadModel
from worker.model_config import InstanceGroup


@dataclass(frozen=True)
class Placement:
    """One instance's device (`cpu`, `cuda:0`, ...) and its CPU threads."""

    device: str
    threads: int = 1


def devices_of(groups: tuple[InstanceGroup, ...], gpu_count: int) -> list[str]:
    """Return one device name per instance, as Triton places `instance_group`s.

    KIND_AUTO takes the GPUs when there are any; on GPUs `count` is per GPU. Raises BadModel when a
    group names a GPU that this machine does not have.
    """
    devices: list[str] = []
    for group in groups:
        if group.kind == "cpu" or (group.kind == "auto" and gpu_count == 0):
            devices += ["cpu"] * group.count
            continue
        gpus = group.gpus or tuple(range(gpu_count))
        if not gpus or max(gpus) >= gpu_count:
            raise BadModel(
                f"instance_group: {f'gpus {list(group.gpus)}' if group.gpus else 'KIND_GPU'}, "
                f"but this machine has {gpu_count} GPUs"
            )
        devices += [f"cuda:{gpu}" for gpu in gpus for _ in range(group.count)]
    return devices


def cpu_threads(cpu_instance_count: int, core_count: int, configured: int) -> int:
    """Return one instance's threads: instances x threads never exceed the cores, unless told so.

    At least one, so more instances than cores do share.
    """
    return configured or max(1, core_count // max(1, cpu_instance_count))
