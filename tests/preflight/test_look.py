"""Which devices there are: by NVML, by torch, by what the worker may use."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fake_nvml
import pytest

from shared.registry.device_report import Device, DeviceReport
from worker.preflight import look as looking
from worker.preflight.look import choose, in_own_process, look_again, merged, signs_of_gpus
from worker.preflight.nvml import facts_of, read_nvml
from worker.repository.check import process_environment

WHOLE, FIRST, SECOND = "GPU-aaaa-0", "MIG-cccc-0", "MIG-cccc-2"


def gpu(index: int, uuid: str = "") -> Device:
    return Device(index=index, uuid=uuid or f"GPU-{index}", name="test")


def test_nvml_tells_gpus_and_slices_and_their_figures() -> None:
    found = facts_of(fake_nvml)

    assert (found.driver, found.cuda, found.error) == ("570.10.1", 12080, "")
    whole, first, second, lost = found.devices
    assert [each.uuid for each in (whole, first, second)] == [WHOLE, FIRST, SECOND]
    assert whole == Device(
        uuid=WHOLE, name="NVIDIA Test", bus_id="0000:1a:00.0", memory_bytes=80 * 2**30,
        used_bytes=3 * 2**30, compute_mode="EXCLUSIVE_PROCESS", utilisation_percent=37,
        power_watts=123.4, temperature_celsius=41, uncorrected_errors=2, fault=whole.fault,
    )  # fmt: skip
    assert "have it replaced" in whole.fault
    assert first.parent == second.parent == "GPU-bbbb-1"
    assert (first.power_watts, first.utilisation_percent) == (None, None)
    assert (first.bus_id, first.temperature_celsius) == ("0000:1a:00.0", 41)
    assert "does not answer the driver" in lost.fault
    assert not lost.used


def test_an_nvml_that_does_not_start_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def mismatch() -> None:
        raise fake_nvml.NVMLError("Driver/library version mismatch")

    monkeypatch.setattr(fake_nvml, "nvmlInit", mismatch)

    assert facts_of(fake_nvml).error == "NVML: Driver/library version mismatch"


def test_without_nvml_there_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)

    assert "nvidia-ml-py is not installed" in read_nvml().error


def test_torch_gives_the_numbers_and_nvml_the_figures() -> None:
    known = [Device(uuid="GPU-b", used_bytes=5), Device(uuid="GPU-a", used_bytes=7)]

    found = merged(known, [gpu(0, "GPU-a")], None)

    assert [(each.index, each.uuid, each.used_bytes) for each in found] == [
        (0, "GPU-a", 7), (-1, "GPU-b", 5),
    ]  # fmt: skip
    assert merged([], [gpu(0)], None) == (gpu(0),)


@pytest.mark.parametrize(
    ("visible", "uuids"),
    [
        (None, [WHOLE, FIRST, SECOND]),
        (f"{SECOND},{WHOLE}", [WHOLE, SECOND]),
        ("GPU-bbbb", [FIRST, SECOND]),
    ],
)
def test_slices_are_devices_though_torch_sees_one(visible: str | None, uuids: list[str]) -> None:
    found = merged(facts_of(fake_nvml).devices, [gpu(0, WHOLE)], visible)

    assert [each.uuid for each in found if each.index >= 0] == uuids
    assert [each.index for each in found if each.index >= 0] == [*range(len(uuids))]


@pytest.mark.parametrize(
    ("gpus", "used", "said"),
    [
        ("", [0, 1, 2], ""),
        ("1", [1], ""),
        ("2,0", [0, 2], ""),
        ("GPU-1", [1], ""),
        ("none", [], ""),
        ("5", [], "FERRY_GPUS=5: no GPU is 5, there are 0, 1, 2"),
        ("0,GPU-x", [0], "FERRY_GPUS=0,GPU-x: no GPU is GPU-x, there are 0, 1, 2"),
    ],
)
def test_a_worker_uses_the_gpus_that_are_named(gpus: str, used: list[int], said: str) -> None:
    chosen, unknown = choose([gpu(index) for index in range(3)], gpus)

    assert [each.index for each in DeviceReport(devices=chosen).usable] == used
    assert unknown == said


def test_another_look_brings_figures_and_asks_torch_only_where_devices_changed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml)
    devices = [
        each.model_copy(update={"index": 3, "used": False, "used_bytes": 0})
        for each in facts_of(fake_nvml).devices
    ]
    known = DeviceReport(host="here", devices=tuple(devices))
    anew = DeviceReport(host="anew")
    monkeypatch.setattr(looking, "look", lambda gpus: anew)

    again = look_again(known)

    assert again.host == "here"
    assert {(each.index, each.used) for each in again.devices} == {(3, False)}
    assert again.devices[0].used_bytes == 3 * 2**30
    assert look_again(known.model_copy(update={"devices": tuple(devices[1:])})) is anew
    assert look_again(known.model_copy(update={"reason": "the driver is old"})) is anew


def test_a_process_that_hangs_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    popen = looking.subprocess.Popen
    started: list[Any] = []

    def hang(_: list[str], **named: Any) -> Any:
        started.append(popen(command, **named))
        return started[0]

    monkeypatch.setattr(looking, "subprocess", SimpleNamespace(
        Popen=hang, PIPE=-1, TimeoutExpired=looking.subprocess.TimeoutExpired
    ))  # fmt: skip

    report = in_own_process(os.environ, "", 0.2)

    assert "took longer than 0 s, the driver does not answer" in report.reason
    assert started[0].wait(30) < 0
    started[0].stdout.close()
    started[0].stderr.close()


def test_the_real_process_reports(tmp_path: Path) -> None:
    report = in_own_process(process_environment({**os.environ, "CUDA_VISIBLE_DEVICES": ""}), "none")

    assert report.torch
    assert not report.usable


def test_signs_are_cards_nodes_and_the_drivers_version(tmp_path: Path) -> None:
    assert signs_of_gpus(tmp_path) == (0, 0, "")
    for name, vendor, kind in (("0", "0x10de", "0x030200"), ("1", "0x10de", "0x040300"),
                               ("2", "0x1002", "0x030000")):  # fmt: skip
        card = tmp_path / "sys/bus/pci/devices" / name
        card.mkdir(parents=True)
        (card / "vendor").write_text(vendor + "\n")
        (card / "class").write_text(kind + "\n")
    (tmp_path / "dev").mkdir()
    for name in ("nvidia0", "nvidia11", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / "dev" / name).touch()
    driver = tmp_path / "proc/driver/nvidia"
    driver.mkdir(parents=True)
    (driver / "version").write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.82.07  Release Build\n"
    )

    assert signs_of_gpus(tmp_path) == (1, 2, "580.82.07")
