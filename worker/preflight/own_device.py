"""Gives an instance's process its own device, as the only and current one."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from shared.errors import BadModel
from worker.devices import Placement

PCI_DEVICES = Path("/sys/bus/pci/devices")
VISIBLE = "CUDA_VISIBLE_DEVICES"
INSIDE = "cuda:0"


def take(placement: Placement) -> Placement:
    """Have this process see its device alone; return the placement as it is seen from inside.

    One on the CPU sees no GPU: code that takes one where there is one would take another
    instance's. subtle: CUDA reads the variable at its first call, so nothing may ask it before,
    neither here nor in the forkserver.
    """
    os.environ[VISIBLE] = placement.uuid
    if placement.cores:
        os.sched_setaffinity(0, placement.cores)
    return replace(placement, device=INSIDE) if placement.on_gpu else placement


def check(placement: Placement) -> None:
    """Raise BadModel unless torch sees the placement's device and no other."""
    if not placement.uuid:
        return
    import torch  # noqa: PLC0415  the supervisor imports this module too

    if torch.version.cuda is None:
        raise BadModel(f"{placement.uuid}: this torch is a build for the CPU")
    seen = torch.cuda.device_count()
    if seen != 1:
        raise BadModel(
            f"{placement.uuid} is not to be had: torch sees {seen} devices, not that one"
        )
    found = str(getattr(torch.cuda.get_device_properties(0), "uuid", ""))
    is_slice = placement.uuid.startswith("MIG-")  # of which torch may tell the whole GPU's
    if found and not is_slice and not placement.uuid.endswith(found.removeprefix("GPU-")):
        raise BadModel(f"{placement.uuid} is not to be had: torch sees GPU-{found} in its place")


def near_cores(bus_id: str, devices: Path = PCI_DEVICES) -> tuple[int, ...]:
    """Return the cores of the NUMA node that a device is at, as far as this process may use them.

    None where the machine has one node, or it is not known.
    """
    folder = devices / bus_id
    try:
        node = int((folder / "numa_node").read_text())
        cores = set(_numbers((folder / "local_cpulist").read_text()))
    except (OSError, ValueError):
        return ()
    allowed = os.sched_getaffinity(0)
    near = cores & allowed
    return tuple(sorted(near)) if bus_id and node >= 0 and near and near != allowed else ()


def _numbers(text: str) -> list[int]:
    """Return the numbers of a list as Linux writes it: `0-3,8` are 0, 1, 2, 3, 8."""
    found: list[int] = []
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found
