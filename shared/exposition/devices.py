"""GPUs, as the machines' supervisors see them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from shared.exposition.families import Family, Figures, Filled
from shared.registry.device_report import Device, DeviceReport

DEVICE = ("host", "device", "uuid", "name")
TRITONS_DEVICE = ("gpu_uuid",)
Read = Callable[[Device], float | None]
OF_DEVICE: dict[Family, Read] = {
    Family("gauge", "ferry_device_memory_total_bytes", "Memory of a GPU.", DEVICE): lambda it: (
        it.memory_bytes or None
    ),
    Family(
        "gauge", "ferry_device_memory_used_bytes", "What all processes took of it.", DEVICE
    ): lambda it: it.used_bytes,
    Family(
        "gauge",
        "ferry_device_utilisation_percent",
        "Share of the last second in which it computed.",
        DEVICE,
    ): lambda it: it.utilisation_percent,
    Family(
        "gauge", "ferry_device_power_watts", "Electric power that it takes.", DEVICE
    ): lambda it: it.power_watts,
    Family(
        "gauge", "ferry_device_temperature_celsius", "Temperature of the chip.", DEVICE
    ): lambda it: it.temperature_celsius,
    Family(
        "gauge",
        "ferry_device_uncorrected_errors",
        "Errors of its memory that could not be corrected, since the driver was loaded.",
        DEVICE,
    ): lambda it: it.uncorrected_errors,
    Family(
        "gauge", "ferry_device_faulty", "1 where its driver holds a fault against it.", DEVICE
    ): lambda it: float(bool(it.fault)),
}
OF_TRITON: dict[Family, Read] = {
    Family(
        "gauge", "nv_gpu_utilization", "GPU utilization rate [0.0 - 1.0)", TRITONS_DEVICE
    ): lambda it: None if it.utilisation_percent is None else it.utilisation_percent / 100,
    Family(
        "gauge", "nv_gpu_memory_total_bytes", "GPU total memory, in bytes", TRITONS_DEVICE
    ): lambda it: it.memory_bytes or None,
    Family(
        "gauge", "nv_gpu_memory_used_bytes", "GPU used memory, in bytes", TRITONS_DEVICE
    ): lambda it: it.used_bytes,
    Family("gauge", "nv_gpu_power_usage", "GPU power usage in watts", TRITONS_DEVICE): lambda it: (
        it.power_watts
    ),
}
"""The same under the names by which Triton's clients look for them."""
UNUSABLE = Family(
    "gauge",
    "ferry_device_unusable",
    "1 for a worker that cannot use GPUs of its machine, with the reason.",
    ("host", "reason"),
)
CONTESTED = Family(
    "gauge",
    "ferry_device_contested",
    "1 for a GPU on which two workers place models, with the other one.",
    ("host", "uuid", "by"),
)


class DeviceFigures(Figures):
    """Each device's figures, as far as NVML has them, and why some are not used."""

    families = (*OF_DEVICE, *OF_TRITON, UNUSABLE, CONTESTED)

    def __init__(self, read: Callable[[], Iterable[DeviceReport]]) -> None:
        """Ask `read` at each scrape."""
        self._read = read

    def fill(self, families: Filled) -> None:
        """Add the figures of all machines."""
        known = set()
        for report in self._read():
            for uuid, by in report.contested.items():
                families[CONTESTED.name].add_metric([report.host, uuid, by], 1.0)
            if report.reason:
                families[UNUSABLE.name].add_metric([report.host, report.reason], 1.0)
            for device in report.devices:
                row = [report.host, device.place, device.uuid, device.name]
                _add(families, OF_DEVICE, device, row)
                if device.uuid not in known:  # two workers of one machine see the same
                    _add(families, OF_TRITON, device, [device.uuid])
                known.add(device.uuid)


def _add(families: Filled, figures: dict[Family, Read], device: Device, labels: list[str]) -> None:
    for family, read in figures.items():
        if (value := read(device)) is not None:
            families[family.name].add_metric(labels, float(value))
