"""Where each instance of a model runs: which device, how many CPU threads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shared.errors import BadModel
from shared.registry.device_report import DeviceReport
from worker.repository.config.groups import InstanceGroup

CPU_INFO = Path("/proc/cpuinfo")
MAX_GPU_THREADS = 4
NO_PROVIDER = "this ONNX Runtime has no CUDA provider; install onnxruntime-gpu"
CPU_CODE = "scikit-learn runs on the CPU only"


@dataclass(frozen=True)
class Placement:
    """One instance's device (`cpu`, `cuda:0`, ...), its CPU threads, and the cores they run on.

    A GPU has a `uuid`; no `cores` are any. `note` says what is wrong with the place.
    """

    device: str
    threads: int = 1
    uuid: str = ""
    cores: tuple[int, ...] = ()
    note: str = ""

    @property
    def on_gpu(self) -> bool:
        """Tell whether it is a GPU's."""
        return self.device.startswith("cuda")


def devices_of(
    groups: tuple[InstanceGroup, ...],
    gpus: Sequence[int],
    *,
    allow_cpu: bool = False,
    cpu_only: str = "",
) -> list[str]:
    """Return one device name per instance, as Triton places `instance_group`s.

    KIND_AUTO takes the `gpus` when there are any; on GPUs `count` is per GPU. Raises BadModel when
    a group names a GPU that this worker does not have; with `allow_cpu` one without any runs such a
    group's `count` on the CPU instead. `cpu_only` says why a model cannot run on GPUs, if so.
    """
    devices: list[str] = []
    for group in groups:
        usable = () if cpu_only and group.kind == "auto" else gpus
        on_cpu = group.kind == "cpu" or (not usable and (allow_cpu or group.kind == "auto"))
        if on_cpu:
            devices += ["cpu"] * group.count
            continue
        wanted = group.gpus or tuple(usable)
        said = f"gpus {list(group.gpus)}" if group.gpus else "KIND_GPU"
        if not wanted or not set(wanted) <= set(usable):
            raise BadModel(f"instance_group: {said}, but {_there(gpus)}")
        if cpu_only:
            raise BadModel(f"instance_group: {said}, but {cpu_only}")
        devices += [f"cuda:{gpu}" for gpu in wanted for _ in range(group.count)]
    return devices


def _there(gpus: Sequence[int]) -> str:
    if not gpus:
        return "this machine has 0 GPUs; FERRY_ALLOW_CPU_FALLBACK=1 runs it on the CPU"
    if list(gpus) == [*range(len(gpus))]:
        return f"this machine has {len(gpus)} GPUs"
    return f"this worker has the GPUs {', '.join(map(str, gpus))}"


def falls_back(groups: tuple[InstanceGroup, ...], gpus: Sequence[int]) -> bool:
    """Tell whether `allow_cpu` is why `devices_of` places a model's groups at all."""
    return not gpus and any(group.kind == "gpu" for group in groups)


def why_cpu_only(backend: str, devices: DeviceReport) -> str:
    """Return why a backend cannot use the GPUs that are there; empty where it can."""
    if backend == "joblib":
        return CPU_CODE
    if backend == "onnxruntime" and not devices.onnxruntime_gpu:
        return NO_PROVIDER
    return ""


def cpu_threads(cpu_instance_count: int, core_count: int, configured: int) -> int:
    """Return one instance's threads: instances x threads never exceed the cores, unless told so.

    At least one, so more instances than cores do share.
    """
    return configured or max(1, core_count // max(1, cpu_instance_count))


def gpu_threads(instance_count: int, core_count: int, configured: int) -> int:
    """Return the CPU threads of an instance on a GPU, which does little but feed it."""
    return configured or max(1, min(MAX_GPU_THREADS, core_count // max(1, instance_count)))


def cpu_flags(info: Path = CPU_INFO) -> frozenset[str]:
    """Return the instruction sets of this machine's CPU as Linux calls them, as `avx2`."""
    try:
        lines = info.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return frozenset()
    found = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return frozenset(found.partition(":")[2].split())
