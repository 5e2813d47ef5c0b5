"""What NVIDIA's management library says of the GPUs; without it there are no figures.

It is reached by `nvidia-ml-py`, whose module `pynvml` is an extra of ours. What a device does not
support is left out: a MIG slice has no power of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from shared.registry.device_report import Device

Value = TypeVar("Value")
COMPUTE_MODES = {0: "DEFAULT", 2: "PROHIBITED", 3: "EXCLUSIVE_PROCESS"}
MILLI = 1000
NO_ANSWER = "does not answer the driver any more: reset it or restart the machine"
REPLACE = "its memory has rows that could not be remapped: have it replaced"
PENDING = "its memory has rows to be remapped: reset it"


@dataclass(frozen=True)
class NvmlFacts:
    """The driver, the CUDA that it speaks as a number (13000 is 13.0), and its devices.

    `error` says why there is nothing. A GPU that is cut into MIG slices is left out, they are not.
    """

    driver: str = ""
    cuda: int = 0
    devices: tuple[Device, ...] = ()
    error: str = ""


def read_nvml() -> NvmlFacts:
    """Return what NVML says by now; never raises."""
    try:
        import pynvml  # noqa: PLC0415  an extra
    except ModuleNotFoundError:
        return NvmlFacts(error="nvidia-ml-py is not installed, so there are no figures of GPUs")
    return facts_of(pynvml)


def facts_of(nvml: Any) -> NvmlFacts:
    """Return what NVML says by its module `nvml`."""
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        return NvmlFacts(error=f"NVML: {error}")
    try:
        return NvmlFacts(
            driver=_asked(nvml, nvml.nvmlSystemGetDriverVersion) or "",
            cuda=_asked(nvml, nvml.nvmlSystemGetCudaDriverVersion) or 0,
            devices=tuple(_devices(nvml)),
        )
    finally:
        _asked(nvml, nvml.nvmlShutdown)


def _asked(nvml: Any, question: Callable[..., Value], *arguments: Any) -> Value | None:
    """Return an answer of NVML's, None where it has none."""
    try:
        return question(*arguments)
    except nvml.NVMLError:
        return None


def _devices(nvml: Any) -> Iterator[Device]:
    for index in range(_asked(nvml, nvml.nvmlDeviceGetCount) or 0):
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            whole = _device(nvml, handle)
        except nvml.NVMLError as error:
            yield Device(uuid=f"GPU {index}", used=False, fault=f"{NO_ANSWER} ({error})")
            continue
        slices = list(_slices(nvml, handle))
        for slice_handle in slices:
            part = _device(nvml, slice_handle)
            yield part.model_copy(
                update={
                    "parent": whole.uuid, "bus_id": whole.bus_id, "fault": whole.fault,
                    "compute_mode": whole.compute_mode,
                    "temperature_celsius": whole.temperature_celsius,
                }
            )  # fmt: skip
        if not slices:
            yield whole


def _slices(nvml: Any, handle: Any) -> Iterator[Any]:
    mode = _asked(nvml, nvml.nvmlDeviceGetMigMode, handle)
    if not mode or mode[0] != nvml.NVML_DEVICE_MIG_ENABLE:
        return
    for index in range(_asked(nvml, nvml.nvmlDeviceGetMaxMigDeviceCount, handle) or 0):
        found = _asked(nvml, nvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, index)
        if found is not None:
            yield found


def _device(nvml: Any, handle: Any) -> Device:
    """Return one device; raises NVMLError only for one that does not say who it is."""

    def ask(question: Callable[..., Value], *more: Any) -> Value | None:
        return _asked(nvml, question, handle, *more)

    memory: Any = ask(nvml.nvmlDeviceGetMemoryInfo)
    bus: Any = ask(nvml.nvmlDeviceGetPciInfo)
    load: Any = ask(nvml.nvmlDeviceGetUtilizationRates)
    milliwatts = ask(nvml.nvmlDeviceGetPowerUsage)
    errors = ask(
        nvml.nvmlDeviceGetTotalEccErrors, nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
        nvml.NVML_VOLATILE_ECC,
    )  # fmt: skip
    return Device(
        uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
        name=_text(ask(nvml.nvmlDeviceGetName) or ""),
        bus_id=_bus_id(_text(bus.busId)) if bus else "",
        memory_bytes=memory.total if memory else 0,
        used_bytes=memory.used if memory else None,
        compute_mode=COMPUTE_MODES.get(ask(nvml.nvmlDeviceGetComputeMode) or 0, ""),
        utilisation_percent=load.gpu if load else None,
        power_watts=milliwatts / MILLI if milliwatts is not None else None,
        temperature_celsius=ask(nvml.nvmlDeviceGetTemperature, nvml.NVML_TEMPERATURE_GPU),
        uncorrected_errors=errors,
        fault=_fault(ask(nvml.nvmlDeviceGetRemappedRows)),
    )


def _fault(rows: Any) -> str:
    """Return what remapped rows (corrected, uncorrected, pending, failed) say of a device."""
    if not rows:
        return ""
    *_, pending, failed = rows
    return REPLACE if failed else PENDING if pending else ""


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _bus_id(text: str) -> str:
    """Return a PCI address as Linux has it: 0000:17:00.0, where NVML has 00000000:17:00.0."""
    domain, _, rest = text.lower().partition(":")
    return f"{domain[-4:]}:{rest}"
