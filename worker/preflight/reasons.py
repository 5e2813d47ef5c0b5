"""Says why torch sees no GPU on a machine that has one: a sentence with the remedy."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile

OLDEST_DRIVERS = {11: "450.80.02", 12: "525.60.13", 13: "580.65.06"}
"""By the major version of CUDA, on Linux. Source: CUDA's release notes, "CUDA Compatibility"."""
ERROR_NUMBER = re.compile(r"[Ee]rror (\d+)")
HIDDEN = {"", "-1", "none", "void", "NoDevFiles"}
BY_NUMBER = {
    "34": "libcuda.so is a stub: install the driver, or start the container with its libraries",
    "46": "all GPUs are busy or in compute mode PROHIBITED (`nvidia-smi -q -d COMPUTE`)",
    "100": "the driver gives this process no device: look at NVIDIA_VISIBLE_DEVICES",
    "802": "the GPUs are not initialised: on a machine with NVSwitch start nvidia-fabricmanager, "
    "of the driver's own version",
    "803": "libcuda.so and the driver's kernel module are of different versions: restart the "
    "machine, or make the container anew",
    "804": "this kind of GPU takes no newer CUDA than its driver's: update the driver",
    "999": "the module nvidia-uvm does not work: load it again (`modprobe -r nvidia_uvm && "
    "modprobe nvidia_uvm`)",
}
"""By the number of CUDA's error, which its texts do not explain."""


@dataclass(frozen=True)
class Facts:
    """What is to be seen of a machine's GPUs from one process.

    `cards` are NVIDIA's on the PCI bus, `nodes` their device files, `kernel_driver` the version of
    the kernel's module. `torch_cuda` is empty for a build without CUDA; `torch_count` are the
    devices that torch sees, and `torch_error` is its own word on why not more. `visible` is
    CUDA_VISIBLE_DEVICES, None where it is not set.
    """

    cards: int = 0
    nodes: int = 0
    kernel_driver: str = ""
    nvml_driver: str = ""
    nvml_count: int = 0
    nvml_error: str = ""
    torch: str = ""
    torch_cuda: str = ""
    torch_count: int = 0
    torch_error: str = ""
    visible: str | None = None

    @property
    def driver(self) -> str:
        """Return the driver's version, empty for none."""
        return self.nvml_driver or self.kernel_driver

    @property
    def there(self) -> int:
        """Return how many GPUs anything but torch sees, at least."""
        return max(self.cards, self.nodes, self.nvml_count, int(bool(self.driver)))

    @property
    def needed_driver(self) -> str:
        """Return the oldest driver that this torch runs with, empty where that is not known."""
        major = self.torch_cuda.partition(".")[0]
        return OLDEST_DRIVERS.get(int(major), "") if major.isdigit() else ""


def why_unused(facts: Facts) -> str:
    """Return why torch sees none of the GPUs that are there, or fewer; empty when it sees all."""
    if not facts.there:
        return ""
    if facts.torch_count:
        missing = facts.nvml_count - facts.torch_count
        if facts.visible is not None or missing <= 0:
            return ""
        return f"torch sees {facts.torch_count} of {facts.nvml_count} GPUs"
    return f"torch sees no GPU, though there is one: {next(_causes(facts))}"


def _causes(facts: Facts) -> Iterator[str]:
    """Yield what may be the cause, the surest first; the last is always there."""
    if not facts.torch_cuda:
        yield f"torch {facts.torch} is a build for the CPU, install the one for CUDA"
    if not facts.driver and not facts.nodes:
        yield (
            "no NVIDIA driver is to be seen: install one, or start the container with the GPUs "
            "(`docker run --gpus all`, which wants the NVIDIA Container Toolkit)"
        )
    if facts.visible is not None and facts.visible.strip() in HIDDEN:
        yield f"CUDA_VISIBLE_DEVICES={facts.visible!r} hides it"
    if is_older(facts.driver, facts.needed_driver):
        yield (
            f"driver {facts.driver} is too old for CUDA {facts.torch_cuda}, which torch "
            f"{facts.torch} was built for: install driver {facts.needed_driver} or newer"
        )
    if facts.driver and not facts.nodes:
        yield (
            "a driver is loaded, but its /dev/nvidia files are not in this container: start it "
            "with the GPUs (`docker run --gpus all`, which wants the NVIDIA Container Toolkit)"
        )
    number = ERROR_NUMBER.search(facts.torch_error)
    if number and number[1] in BY_NUMBER:
        yield f"{BY_NUMBER[number[1]]} (CUDA error {number[1]})"
    if "Found no NVIDIA driver" in facts.torch_error:
        yield (
            "this process finds no libcuda.so.1: in a container NVIDIA_DRIVER_CAPABILITIES must "
            "hold compute"
        )
    if "mismatch" in facts.nvml_error.lower():
        yield "library and kernel module of the driver differ: restart the machine"
    if facts.visible is not None:
        yield f"CUDA_VISIBLE_DEVICES={facts.visible!r} names none that is there"
    yield facts.torch_error or facts.nvml_error or "torch does not say why"


def is_older(version: str, needed: str) -> bool:
    """Tell whether a driver is older than the one needed; False where either is not known."""
    return bool(version and needed) and _numbers(version) < _numbers(needed)


def _numbers(version: str) -> list[int]:
    return [int(part) for part in takewhile(str.isdigit, version.split("."))]
