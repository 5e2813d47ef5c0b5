"""Why torch sees no GPU where there is one: each cause has its own sentence, with the remedy."""

from __future__ import annotations

from dataclasses import replace

import pytest

from worker.preflight.reasons import Facts, is_older, why_unused

GPU = Facts(
    cards=1, nodes=1, kernel_driver="580.82.07", nvml_driver="580.82.07", nvml_count=1,
    torch="2.13.0+cu130", torch_cuda="13.0",
)  # fmt: skip
SAYS = "CUDA unknown error - Error {}: something"


def test_a_machine_without_a_sign_of_a_gpu_needs_no_reason() -> None:
    assert why_unused(Facts(torch="2.13.0+cpu")) == ""
    assert why_unused(Facts(torch_cuda="13.0", torch_error="Found no NVIDIA driver")) == ""


def test_gpus_that_torch_sees_need_no_reason() -> None:
    assert why_unused(replace(GPU, torch_count=1)) == ""
    assert why_unused(replace(GPU, nvml_count=8, torch_count=2, visible="0,1")) == ""


def test_gpus_that_are_missing_among_others_are_counted() -> None:
    assert why_unused(replace(GPU, nvml_count=8, torch_count=7)) == "torch sees 7 of 8 GPUs"


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        (replace(GPU, torch="2.13.0+cpu", torch_cuda=""), "2.13.0+cpu is a build for the CPU"),
        (Facts(cards=2, torch_cuda="13.0", torch_error="Found no NVIDIA driver"), "--gpus all"),
        (replace(GPU, nodes=0), "/dev/nvidia files are not in this container"),
        (replace(GPU, visible=""), "CUDA_VISIBLE_DEVICES='' hides it"),
        (replace(GPU, visible="-1"), "CUDA_VISIBLE_DEVICES='-1' hides it"),
        (replace(GPU, visible="9"), "CUDA_VISIBLE_DEVICES='9' names none that is there"),
        (replace(GPU, nvml_driver="535.183.01"), "driver 535.183.01 is too old for CUDA 13.0"),
        (replace(GPU, nvml_driver="580.65.05"), "install driver 580.65.06 or newer"),
        (
            replace(GPU, nvml_driver="470.82", kernel_driver="", torch_cuda="12.8"),
            "install driver 525.60.13 or newer",
        ),
        (replace(GPU, torch_error=SAYS.format(802)), "nvidia-fabricmanager"),
        (replace(GPU, torch_error=SAYS.format(803)), "of different versions"),
        (replace(GPU, torch_error=SAYS.format(804)), "update the driver"),
        (replace(GPU, torch_error=SAYS.format(999)), "nvidia-uvm"),
        (replace(GPU, torch_error=SAYS.format(46)), "PROHIBITED"),
        (
            replace(GPU, torch_error="Found no NVIDIA driver on your system."),
            "NVIDIA_DRIVER_CAPABILITIES",
        ),
        (
            replace(GPU, nvml_driver="", nvml_error="NVML: Driver/library version mismatch"),
            "library and kernel module of the driver differ",
        ),
        (replace(GPU, torch_error="a thing that nobody knows"), "a thing that nobody knows"),
        (GPU, "torch does not say why"),
    ],
)
def test_each_cause_has_its_sentence(facts: Facts, said: str) -> None:
    found = why_unused(facts)

    assert found.startswith("torch sees no GPU, though there is one: ")
    assert said in found


@pytest.mark.parametrize(
    ("version", "needed", "older"),
    [
        ("525.60.12", "525.60.13", True),
        ("525.60.13", "525.60.13", False),
        ("580.9", "580.65.06", True),
        ("1000.1", "580.65.06", False),
        ("580.65.06-grid", "580.65.06", True),
        ("", "580.65.06", False),
        ("535.1", "", False),
    ],
)
def test_versions_of_drivers_are_compared_as_numbers(
    version: str, needed: str, older: bool
) -> None:
    assert is_older(version, needed) is older
