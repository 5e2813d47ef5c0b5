"""A stand-in for `pynvml`: one whole GPU, one cut into two slices, one that fell off the bus.

Also put on a worker's path under that name.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

NVML_DEVICE_MIG_ENABLE = 1
NVML_MEMORY_ERROR_TYPE_UNCORRECTED = 1
NVML_VOLATILE_ECC = 0
NVML_TEMPERATURE_GPU = 0
GIBIBYTE = 2**30
UUIDS = {0: b"GPU-aaaa-0", 1: "GPU-bbbb-1", (1, 0): "MIG-cccc-0", (1, 2): "MIG-cccc-2"}


class NVMLError(Exception):
    pass


def refuse(*_: Any) -> Any:
    raise NVMLError("Not Supported")


def nvmlInit() -> None:
    pass


def nvmlShutdown() -> None:
    pass


def nvmlSystemGetDriverVersion() -> str:
    return "570.10.1"


def nvmlSystemGetCudaDriverVersion() -> int:
    return 12080


def nvmlDeviceGetCount() -> int:
    return 3


def nvmlDeviceGetHandleByIndex(index: int) -> int:
    if index == 2:
        raise NVMLError("GPU is lost")
    return index


def nvmlDeviceGetUUID(handle: Any) -> Any:
    return UUIDS[handle]


def nvmlDeviceGetName(handle: Any) -> str:
    return "NVIDIA Slice 3g.40gb" if isinstance(handle, tuple) else "NVIDIA Test"


def nvmlDeviceGetMigMode(handle: int) -> tuple[int, int]:
    if handle == 0:
        raise NVMLError("Not Supported")
    return 1, 1


def nvmlDeviceGetMaxMigDeviceCount(_: int) -> int:
    return 7


def nvmlDeviceGetMigDeviceHandleByIndex(handle: int, index: int) -> tuple[int, int]:
    if (handle, index) not in UUIDS:
        raise NVMLError("Not Found")
    return handle, index


def nvmlDeviceGetMemoryInfo(_: Any) -> Any:
    return SimpleNamespace(total=80 * GIBIBYTE, used=3 * GIBIBYTE)


def nvmlDeviceGetPciInfo(handle: Any) -> Any:
    return refuse() if isinstance(handle, tuple) else SimpleNamespace(busId=b"00000000:1A:00.0")


def nvmlDeviceGetComputeMode(_: Any) -> int:
    return 3


def nvmlDeviceGetUtilizationRates(handle: Any) -> Any:
    return refuse() if isinstance(handle, tuple) else SimpleNamespace(gpu=37)


def nvmlDeviceGetPowerUsage(handle: Any) -> Any:
    return refuse() if isinstance(handle, tuple) else 123_400


def nvmlDeviceGetTemperature(_: Any, sensor: int) -> int:
    return 41 + sensor


def nvmlDeviceGetTotalEccErrors(_: Any, kind: int, counter: int) -> int:
    return 2 * kind + counter


def nvmlDeviceGetRemappedRows(handle: Any) -> tuple[int, int, int, int]:
    return (0, 1, 0, int(handle == 0))
