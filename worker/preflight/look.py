"""Looks at this machine's GPUs once: a process of its own, for a driver may hang.

    python -m worker.preflight.look [FERRY_GPUS]    prints a DeviceReport as JSON

Only that process asks torch, and with it CUDA: whoever asked once cannot give each of its forks
another device.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shared.registry.device_report import Device, DeviceReport
from worker.preflight.nvml import NvmlFacts, read_nvml
from worker.preflight.reasons import Facts, why_unused

LIMIT_SECONDS = 60.0
"""The first call of CUDA takes several seconds on a machine with eight GPUs."""
NVIDIA = "0x10de"
DISPLAY_CLASS = "0x03"
DEVICE_NODE = re.compile(r"nvidia\d+|dxg|nvhost-gpu")
"""NVIDIA's own, that of Windows' subsystem for Linux, that of a Jetson."""
NONE = "none"


def look(gpus: str = "", environ: Mapping[str, str] = os.environ) -> DeviceReport:
    """Return what there is; never raises. `gpus` is FERRY_GPUS. Initialises CUDA."""
    nvml = read_nvml()
    seen, facts = _asked_torch(_signs(nvml, environ))
    devices = merged(nvml.devices, seen, facts.visible)
    chosen, unknown = choose(devices, gpus)
    return DeviceReport(
        host=socket.gethostname(),
        driver=facts.driver,
        needed_driver=facts.needed_driver,
        torch=facts.torch,
        torch_cuda=facts.torch_cuda,
        onnxruntime_gpu=_onnxruntime_has_cuda(),
        devices=chosen,
        reason=why_unused(facts) or unknown,
        note=nvml.error if facts.there else "",
    )


def look_again(known: DeviceReport, gpus: str = "") -> DeviceReport:
    """Return the same report with new figures, without CUDA; a new one where devices changed."""
    fresh = {each.uuid: each for each in read_nvml().devices}
    if known.reason or fresh.keys() != {each.uuid for each in known.devices} or not fresh:
        return look(gpus)
    devices = [
        fresh[each.uuid].model_copy(update={"index": each.index, "used": each.used})
        for each in known.devices
    ]
    return known.model_copy(update={"devices": tuple(devices)})


def signs_of_gpus(root: Path = Path("/")) -> tuple[int, int, str]:
    """Return NVIDIA's cards on the bus, their device files and the driver's version.

    Cheap, and no call of a driver.
    """
    cards = [
        card
        for card in (root / "sys/bus/pci/devices").glob("*")
        if _read(card / "vendor") == NVIDIA and _read(card / "class").startswith(DISPLAY_CLASS)
    ]
    nodes = [each for each in (root / "dev").glob("*") if DEVICE_NODE.fullmatch(each.name)]
    version = re.search(r"\d+\.\d+[\d.]*", _read(root / "proc/driver/nvidia/version"))
    return len(cards), len(nodes), version[0] if version else ""


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""


def _signs(nvml: NvmlFacts, environ: Mapping[str, str]) -> Facts:
    cards, nodes, driver = signs_of_gpus()
    return Facts(
        cards=cards, nodes=nodes, kernel_driver=driver, nvml_driver=nvml.driver,
        nvml_count=len({each.parent or each.uuid for each in nvml.devices}),
        nvml_error=nvml.error, visible=environ.get("CUDA_VISIBLE_DEVICES"),
    )  # fmt: skip


def _asked_torch(facts: Facts) -> tuple[list[Device], Facts]:
    """Return the devices that torch sees, and the facts with what it says."""
    import torch  # noqa: PLC0415  only in the process that looks, which may have it already

    seen: list[Device] = []
    said = ""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            if torch.version.cuda is not None:
                _initialise()
                seen = [_torch_device(index) for index in range(torch.cuda.device_count())]
        except Exception as error:  # a border: torch raises several kinds, and each is a reason
            said = " ".join(str(error).split())
    said = " ".join([said, *(" ".join(str(each.message).split()) for each in caught)]).strip()
    cuda = torch.version.cuda or ""
    values = facts.__dict__ | {"torch": torch.__version__, "torch_cuda": cuda}
    return seen, Facts(**values | {"torch_count": len(seen), "torch_error": said})


def _initialise() -> None:
    """Initialise CUDA; raises what torch says of it."""
    import torch  # noqa: PLC0415

    initialise: Any = torch.cuda.init  # has no types
    initialise()


def _torch_device(index: int) -> Device:
    import torch  # noqa: PLC0415

    found = torch.cuda.get_device_properties(index)
    bus = [getattr(found, f"pci_{part}_id", -1) for part in ("domain", "bus", "device")]
    address = "{:04x}:{:02x}:{:02x}.0".format(*bus) if min(bus) >= 0 else ""
    uuid = str(getattr(found, "uuid", index))
    return Device(
        index=index, uuid=uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}",
        name=found.name, memory_bytes=found.total_memory, bus_id=address,
    )  # fmt: skip


def _onnxruntime_has_cuda() -> bool:
    try:
        import onnxruntime  # noqa: PLC0415
    except ImportError:
        return False
    return "CUDAExecutionProvider" in onnxruntime.get_available_providers()


def merged(
    known: Sequence[Device], seen: Sequence[Device], visible: str | None
) -> tuple[Device, ...]:
    """Return NVML's devices with torch's numbers, or torch's where NVML says nothing.

    subtle: of MIG slices a process sees one, the first, so that torch's word does not count there;
    their numbers are their places among all devices that are visible.
    """
    if any(each.parent for each in known) and seen:
        wanted = [each for each in known if _is_visible(each, visible)]
        numbers = {each.uuid: index for index, each in enumerate(wanted)}
    else:
        numbers = {each.uuid: each.index for each in seen}
    found = [each.model_copy(update={"index": numbers.get(each.uuid, -1)}) for each in known] + [
        each for each in seen if not known or _is_unknown(each, known)
    ]
    return tuple(sorted(found, key=lambda each: (each.index < 0, each.index)))


def _is_unknown(device: Device, known: Sequence[Device]) -> bool:
    """Tell whether NVML knows a device neither by its own name nor as cut into slices."""
    if any(each.parent for each in known):
        return False
    return device.uuid not in {each.uuid for each in known}


def _is_visible(device: Device, visible: str | None) -> bool:
    if device.fault and not device.name:
        return False
    names = [name.strip() for name in (visible or "").split(",") if name.strip()]
    if visible is None or (all(name.isdigit() for name in names) and names):
        return True
    return any(
        uuid.startswith(name) for name in names for uuid in (device.uuid, device.parent) if uuid
    )


def choose(devices: Sequence[Device], gpus: str) -> tuple[tuple[Device, ...], str]:
    """Mark the devices that FERRY_GPUS names as used, all when it names none.

    They are named by number or by the beginning of a UUID. Returns a sentence about names that
    fit nothing as well.
    """
    names = [name.strip() for name in gpus.split(",") if name.strip()]
    if not names:
        return tuple(devices), ""
    unknown = [name for name in names if not any(_fits(each, name) for each in devices)]
    chosen = tuple(
        each.model_copy(update={"used": any(_fits(each, name) for name in names)})
        for each in devices
    )
    if not unknown or names == [NONE]:
        return chosen, ""
    there = ", ".join(str(each.index) for each in devices if each.index >= 0) or "none"
    return chosen, f"FERRY_GPUS={gpus}: no GPU is {' or '.join(unknown)}, there are {there}"


def _fits(device: Device, name: str) -> bool:
    if name.isdigit():
        return int(name) == device.index
    return name != NONE and device.index >= 0 and device.uuid.startswith(name)


def devices_here(environ: Mapping[str, str]) -> DeviceReport:
    """Return the report of this machine, at no cost where there is no sign of a GPU."""
    if not any(signs_of_gpus()):
        return DeviceReport()
    return in_own_process(environ, environ.get("FERRY_GPUS", ""))


def in_own_process(
    environ: Mapping[str, str], gpus: str, limit_seconds: float = LIMIT_SECONDS
) -> DeviceReport:
    """Return the report of a process of its own, or one that says why there is none."""
    command = [sys.executable, "-m", "worker.preflight.look", gpus]
    process = subprocess.Popen(
        command, env=dict(environ), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        printed, said = process.communicate(timeout=limit_seconds)
    except subprocess.TimeoutExpired:
        process.kill()  # and left alone: what hangs in a driver does not end by it
        return overdue(limit_seconds)
    if process.returncode:
        last = said.strip().splitlines()[-1:] or [f"exit code {process.returncode}"]
        return failed(last[0])
    return DeviceReport.model_validate_json(printed.strip().splitlines()[-1])


def overdue(limit_seconds: float) -> DeviceReport:
    """Return the report of a look that did not end."""
    return failed(f"it took longer than {limit_seconds:.0f} s, the driver does not answer")


def failed(why: str) -> DeviceReport:
    """Return the report of a look that told nothing."""
    return DeviceReport(
        host=socket.gethostname(),
        reason=f"looking at the GPUs failed: {why}",
    )


if __name__ == "__main__":
    print(look("".join(sys.argv[1:2])).model_dump_json())
