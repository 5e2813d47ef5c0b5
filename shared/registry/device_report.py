"""One machine's GPUs as its supervisor sees them: which there are, and why some are not used."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class _Row(BaseModel):
    # What a later release adds is not known here, and no reason to fail.
    model_config = ConfigDict(frozen=True, extra="ignore")


class Device(_Row):
    """One GPU, or one MIG slice of one; what NVML alone knows is None where it does not say it.

    `index` is the number in `cuda:N` and in a config's `gpus`, -1 where torch does not see the
    device; `used` tells whether this worker places models on it. A slice is of its `parent`.
    `uncorrected_errors` are those of its memory since the driver was loaded, `fault` says what NVML
    holds against it.
    """

    index: int = -1
    uuid: str
    name: str = ""
    used: bool = True
    parent: str = ""
    bus_id: str = ""
    memory_bytes: int = 0
    compute_mode: str = ""
    used_bytes: int | None = None
    utilisation_percent: float | None = None
    power_watts: float | None = None
    temperature_celsius: float | None = None
    uncorrected_errors: int | None = None
    fault: str = ""

    @property
    def place(self) -> str:
        """Return what instances' records call it, empty where none can run on it."""
        return f"cuda:{self.index}" if self.index >= 0 else ""


class DeviceReport(_Row):
    """One look at a machine's GPUs.

    `driver` is the NVIDIA driver that is loaded, `needed_driver` the oldest that this build of
    torch, for `torch_cuda`, runs with. `reason` says why GPUs that are there are not used, `note`
    why figures of theirs are missing. `onnxruntime_gpu` tells whether ONNX models can use them.
    `contested` are the UUIDs of devices that another supervisor, whose id stands beside, uses too.
    """

    host: str = ""
    driver: str = ""
    needed_driver: str = ""
    torch: str = ""
    torch_cuda: str = ""
    onnxruntime_gpu: bool = False
    devices: tuple[Device, ...] = ()
    reason: str = ""
    note: str = ""
    contested: dict[str, str] = {}

    @property
    def usable(self) -> tuple[Device, ...]:
        """Return the devices that this worker places models on, by number."""
        usable = [each for each in self.devices if each.used and each.index >= 0]
        return tuple(sorted(usable, key=lambda each: each.index))

    def device_of(self, place: str) -> Device | None:
        """Return the device that records call `place`."""
        return next((each for each in self.devices if each.place == place), None)
