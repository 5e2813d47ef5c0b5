"""An instance's process sees its own device, has cores near it, and memory enough or a reason."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fake_backend import fake_spec
from ferry_processes import ROOT
from formats_repository import add_format

from shared.errors import BadModel
from worker.backends import onnxruntime
from worker.devices import Placement
from worker.instance import process
from worker.instance.process import warm_backend
from worker.job import InstanceJob
from worker.meter import Meter
from worker.preflight import memory, own_device
from worker.repository.models import read_model

PLACED = Placement("cuda:5", 2, "GPU-5")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3,4,5,6,7")


def test_a_gpu_is_the_only_one_and_the_first_from_inside() -> None:
    inside = own_device.take(PLACED)

    assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-5"
    assert inside == replace(PLACED, device="cuda:0")


def test_an_instance_on_the_cpu_sees_none() -> None:
    assert own_device.take(Placement("cpu", 3)) == Placement("cpu", 3)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


def seeing(monkeypatch: pytest.MonkeyPatch, uuids: list[str]) -> None:
    """Have torch see these devices."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(uuids))
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid=uuids[index])
    )


def test_a_device_that_is_not_the_placements_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    own_device.check(Placement("cpu"))
    seeing(monkeypatch, ["5"])
    own_device.check(PLACED)
    seeing(monkeypatch, ["6"])
    with pytest.raises(BadModel, match="GPU-5 is not to be had: torch sees GPU-6 in its place"):
        own_device.check(PLACED)
    own_device.check(replace(PLACED, uuid="MIG-1"))
    seeing(monkeypatch, [])
    with pytest.raises(BadModel, match="torch sees 0 devices"):
        own_device.check(PLACED)


def test_cores_are_those_of_the_devices_node(tmp_path: Path) -> None:
    mine = sorted(os.sched_getaffinity(0))
    device = tmp_path / "0000:1a:00.0"
    device.mkdir()
    (device / "numa_node").write_text("1\n")
    (device / "local_cpulist").write_text(f"{mine[0]},{mine[-1] + 1}-{mine[-1] + 3}\n")

    assert own_device.near_cores("0000:1a:00.0", tmp_path) == (mine[0],)
    assert own_device.near_cores("0000:1b:00.0", tmp_path) == ()
    assert own_device.near_cores("", tmp_path) == ()
    (device / "numa_node").write_text("-1\n")
    assert own_device.near_cores("0000:1a:00.0", tmp_path) == ()


def job(file: Path, *, parameters: dict[str, str] | None = None, last: int = 0) -> InstanceJob:
    spec = fake_spec().model_copy(update={"parameters": parameters or {}})
    return InstanceJob(
        "i", spec, "torchscript", file, PLACED, "", "", 1.0, "INFO", memory_bytes=last
    )


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A GPU with 1000 of 4000 bytes free; returns the fractions that were set."""
    fractions: list[float] = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (1000, 4000))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", fractions.append)
    return fractions


def test_what_fits_is_admitted_and_limited_as_asked(tmp_path: Path, free: list[float]) -> None:
    file = tmp_path / "model.pt"
    file.write_bytes(bytes(100))

    assert memory.admit(job(file)) == 1000
    assert memory.admit(job(file, parameters={"max_gpu_memory_bytes": "400"})) == 1000
    assert free == [0.1]
    assert memory.admit(replace(job(file), placement=Placement("cpu"))) == 0


@pytest.mark.parametrize(
    ("size", "last", "parameters", "said"),
    [
        (1001, 0, {}, "GPU GPU-5 has .* free, and its file is"),
        (10, 1001, {}, "its last instance took"),
        (500, 0, {"max_gpu_memory_bytes": "400"}, "max_gpu_memory_bytes 400: the model does not"),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, free: list[float], size: int, last: int, parameters: dict[str, str], said: str
) -> None:
    file = tmp_path / "model.pt"
    file.write_bytes(bytes(size))

    with pytest.raises(BadModel, match=said):
        memory.admit(job(file, parameters=parameters, last=last))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("CUDA-capable device(s) is/are busy or unavailable", "GPU-5 lets no further process in"),
        ("out of memory", "GPU-5 has no memory left even to begin with"),
    ],
)
def test_a_device_that_takes_no_new_process_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, said: str
) -> None:
    def busy() -> tuple[int, int]:
        raise RuntimeError(f"CUDA error: {words}")

    file = tmp_path / "model.pt"
    file.write_bytes(b"x")
    monkeypatch.setattr(torch.cuda, "mem_get_info", busy)

    with pytest.raises(BadModel, match=said):
        memory.admit(job(file))


WATCHED = """
import sys, torch
from types import SimpleNamespace
asked = []
for name in ("init", "is_available", "device_count", "current_device", "get_device_properties"):
    setattr(torch.cuda, name, lambda *_, name=name: asked.append(name))
import worker.instance.forkserver_preload, worker.supervisor.instance_slot, worker.preflight.look
sys.exit(str(asked) if asked else 0)
"""


def test_the_forkserver_asks_cuda_nothing() -> None:
    """Or none of its forks could be given a device of its own."""
    command = [sys.executable, "-c", WATCHED]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr


def falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have ONNX Runtime say that it has CUDA's provider, which it then cannot use."""
    both = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime.onnxruntime, "get_available_providers", lambda: both)
    monkeypatch.setattr(process, "device_probe", lambda _: process.no_device)


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_onnx_that_falls_back_to_the_cpu_is_recorded_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = add_format(tmp_path, "onnx")
    falls_back(monkeypatch)
    model = read_model(tmp_path, "onnx")
    placed = InstanceJob(
        "i", model.spec, "onnxruntime", file, Placement("cuda:0"), "", "", 1.0, "INFO"
    )

    warm = warm_backend(placed, Meter())

    assert warm.device == "cpu"
    assert warm.note.startswith("runs on the CPU: ONNX Runtime could not use its CUDA provider")


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_onnx_that_falls_back_is_refused_where_a_gpu_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = add_format(tmp_path, "onnx")
    with (tmp_path / "onnx" / "config.pbtxt").open("a") as config:
        config.write("\ninstance_group [ { kind: KIND_GPU gpus: [5] } ]\n")
    falls_back(monkeypatch)

    with pytest.raises(BadModel, match="KIND_GPU, but ONNX Runtime could not use its CUDA"):
        onnxruntime.OnnxRuntimeBackend(read_model(tmp_path, "onnx").spec, file, Placement("cuda:0"))
