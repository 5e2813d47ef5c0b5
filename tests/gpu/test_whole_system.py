"""A whole Ferry on a real GPU: where models run, what they answer, what they say when they cannot.

    make test-gpu

Models are exported on the GPU and on the CPU, and served on the other. Skipped without a GPU.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from textwrap import dedent
from threading import Event
from typing import Any

import pytest
import torch
from ferry_processes import ROOT, environment, free_port, running_gunicorn, running_worker
from scripted_models import save_scripted
from waiting import wait_until

from shared.registry.device_report import DeviceReport
from shared.registry.registry import Registry
from shared.registry.snapshot import InstanceRecord, Snapshot
from shared.settings import Settings
from shared.wire.client import connect

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="torch sees no GPU on this machine"
)
LOAD_SECONDS = 60
MEBIBYTE = 2**20
ONNX = (  # y = x + x
    "CAg6PwoOCgF4CgF4EgF5IgNBZGQSAWdaFAoBeBIPCg0IARIJCgMSAW4KAggCYhQKAXkSDwoNCAESCQoDEgFuCgIIAkIE"
    "CgAQEQ=="
)
FITS = {"double_twice", "python", "traced_on_cpu", "traced_on_gpu", "exported_on_cpu",
        "exported_on_gpu", "weights", "weights_on_cpu", "heavy", "onnx_auto"}  # fmt: skip
"""The models that must become ready; the others are refused."""
OWN = """
import json, os
import torch
class Model:
    def load(self, context):
        seen = {
            "visible": os.environ.get("CUDA_VISIBLE_DEVICES"),
            "count": torch.cuda.device_count(),
            "current": torch.cuda.current_device() if torch.cuda.is_available() else -1,
            "uuid": str(torch.cuda.get_device_properties(0).uuid) if torch.cuda.is_available() else "",
            "device": context.device,
            "threads": torch.get_num_threads(),
        }
        (context.directory / "seen.json").write_text(json.dumps(seen))
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
    def forward(self, inputs):
        return {"y": (torch.tensor(inputs["x"]).to(self.device) * 2).cpu()}
"""  # noqa: E501
ARCHITECTURES = """
import torch
def double():
    return torch.nn.Linear(2, 2, bias=False)
class Mixed(torch.nn.Linear):
    def forward(self, x):
        return super().forward(x) + torch.zeros(2)
def mixed():
    return Mixed(2, 2, bias=False)
"""


class Double(torch.nn.Module):
    """y = 2x; the zeros it adds are made on the device on which it is traced."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2.0 + torch.zeros(x.shape, device=x.device)


class Buffered(torch.nn.Module):
    """y = 2x, by a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("two", torch.full((2,), 2.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.two + torch.zeros((2,), device=x.device)


class Heavy(torch.nn.Module):
    """Doubles x, with 256 MiB of work for each row."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        work = torch.zeros([x.size(0), 1 << 26], device=x.device)
        return x * 2.0 + work[:, :2]


def config(kind: str, *, count: int = 1, more: str = "", rows: int = 8) -> str:
    return (
        f"max_batch_size: {rows}\n"
        'input [ { name: "x" data_type: TYPE_FP32 dims: [2] } ]\n'
        'output [ { name: "y" data_type: TYPE_FP32 dims: [2] } ]\n'
        f"instance_group [ {{ kind: KIND_{kind} count: {count} }} ]\n{more}\n"
    )


def parameter(key: str, value: object) -> str:
    return f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n'


def trace(module: torch.nn.Module, file: Path, device: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and the zeros' size is traced
        traced: Any = torch.jit.trace(module.to(device).eval(), torch.ones(2, 2, device=device))
    traced.save(str(file))


def export(file: Path, device: str) -> None:
    rows = torch.export.Dim("rows", max=64)
    example = (torch.ones(2, 2, device=device),)
    shapes = ({0: rows},)
    torch.export.save(
        torch.export.export(Buffered().to(device).eval(), example, dynamic_shapes=shapes), file
    )


def save_weights(file: Path) -> None:
    torch.save({"weight": 2.0 * torch.eye(2, device="cuda")}, file)


def save_text(text: str) -> Callable[[Path], None]:
    return lambda file: file.write_text(dedent(text)) and None


def save_onnx(file: Path) -> None:
    file.write_bytes(base64.b64decode(ONNX))


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One model for each way of loading, placing and failing."""
    root = tmp_path_factory.mktemp("models")
    torchscript, pytorch = 'platform: "pytorch_libtorch"', 'backend: "pytorch"'
    own, onnx = 'backend: "python"', 'platform: "onnxruntime_onnx"'
    weights = pytorch + "\n" + parameter("architecture", "made:double")
    mixed = pytorch + "\n" + parameter("architecture", "made:mixed")
    tight = torchscript + "\n" + parameter("max_gpu_memory_bytes", 2560 * MEBIBYTE)
    tiny = torchscript + "\n" + parameter("max_gpu_memory_bytes", 100)
    models: dict[str, tuple[str, str, Callable[[Path], None]]] = {
        "double_twice": (config("GPU", count=2, more=torchscript), "model.pt",
                         lambda file: save_scripted(Double(), file)),
        "python": (config("AUTO", more=own), "model.py", save_text(OWN)),
        "python_on_cpu": (config("CPU", more=own), "model.py", save_text(OWN)),
        "traced_on_cpu": (config("GPU", more=torchscript), "model.pt",
                          lambda file: trace(Double(), file, "cpu")),
        "traced_on_gpu": (config("CPU", more=torchscript), "model.pt",
                          lambda file: trace(Double(), file, "cuda")),
        "exported_on_cpu": (config("GPU", more=pytorch), "model.pt2",
                            lambda file: export(file, "cpu")),
        "exported_on_gpu": (config("CPU", more=pytorch), "model.pt2",
                            lambda file: export(file, "cuda")),
        "weights": (config("GPU", more=weights), "weights.pt", save_weights),
        "weights_on_cpu": (config("CPU", more=weights), "weights.pt", save_weights),
        "mixed": (config("GPU", more=mixed), "weights.pt", save_weights),
        "heavy": (config("GPU", more=tight, rows=32), "model.pt",
                  lambda file: save_scripted(Heavy(), file)),
        "too_large": (config("GPU", more=tiny), "model.pt",
                      lambda file: save_scripted(Double(), file)),
        "onnx_auto": (config("AUTO", more=onnx), "model.onnx", save_onnx),
        "onnx_gpu": (config("GPU", more=onnx), "model.onnx", save_onnx),
    }  # fmt: skip
    for name, (text, filename, save) in models.items():
        directory = root / name / "1"
        directory.mkdir(parents=True)
        (root / name / "config.pbtxt").write_text(text)
        if filename == "weights.pt":
            (directory / "made.py").write_text(ARCHITECTURES)
        save(directory / filename)
    return root


class System:
    """A running Ferry, asked from outside."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.registry = Registry(connect(settings.redis_url), settings.key_prefix)

    def http(self, method: str, path: str, body: object = None) -> tuple[int, str]:
        connection = HTTPConnection("127.0.0.1", self.settings.port, timeout=60)
        try:
            connection.request(method, path, json.dumps(body) if body else None)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def ask(self, model: str, rows: list[list[float]]) -> list[float]:
        """Return the flat answer of a model to FP32 rows of two."""
        data = [value for row in rows for value in row]
        x = {"name": "x", "shape": [len(rows), 2], "datatype": "FP32", "data": data}
        status, text = self.http("POST", f"/v2/models/{model}/infer", {"inputs": [x]})
        assert status == 200, text
        found: list[float] = json.loads(text)["outputs"][0]["data"]
        return found

    def snapshot(self) -> Snapshot:
        return self.registry.snapshot()

    def records(self, model: str) -> list[InstanceRecord]:
        return [each for each in self.registry.instances()[0] if each.model == model]

    def reason(self, model: str) -> str:
        found = self.snapshot()
        return found.reasons.get(f"{model}/1", "") or found.failures.get(model, "")

    def is_settled(self, model: str) -> bool:
        return f"{model}/1" in self.snapshot().ready or bool(self.reason(model))


@pytest.fixture(scope="module")
def system(
    repository: Path, redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[System]:
    """Ferry over `repository`, each of its models ready or refused."""
    settings = Settings(
        redis_url=redis_url, key_prefix="gpu", models=str(repository), port=free_port()
    )
    log = tmp_path_factory.mktemp("ferry") / "worker.log"
    with (
        running_worker(settings, wait_ready=False, log_file=log, forked=False),
        running_gunicorn(settings),
    ):
        found = System(settings)
        names = [each.name for each in repository.iterdir()]
        try:
            wait_until(
                lambda: all(map(found.is_settled, names)), LOAD_SECONDS, "each model is settled"
            )
        finally:
            print(log.read_text()[-20_000:])  # which pytest shows where something fails
        yield found


def test_the_devices_are_told(system: System) -> None:
    environ = os.environ | environment(system.settings)
    command = [sys.executable, "-m", "ferry", "devices", "--json"]
    done = subprocess.run(
        command, env=environ, cwd=ROOT, capture_output=True, text=True, check=True
    )
    report = DeviceReport.model_validate_json(done.stdout)

    assert report.reason == ""
    assert report.torch_cuda == torch.version.cuda
    assert len(report.usable) == torch.cuda.device_count()
    assert report.usable[0].name == torch.cuda.get_device_name(0)
    assert str(torch.cuda.get_device_properties(0).uuid) in report.usable[0].uuid
    (registered,) = system.registry.devices().values()
    assert [each.uuid for each in registered.devices] == [each.uuid for each in report.devices]


@pytest.mark.parametrize("model", sorted(FITS))
def test_every_format_answers_wherever_it_was_exported(system: System, model: str) -> None:
    assert system.reason(model) == ""

    assert system.ask(model, [[1.0, 2.0], [3.0, -4.5]]) == [2.0, 4.0, 6.0, -9.0]


def test_instances_run_where_they_were_placed(system: System) -> None:
    (device, *_) = next(iter(system.registry.devices().values())).usable

    for model in ("double_twice", "traced_on_cpu", "exported_on_cpu", "weights"):
        places = {(each.device, each.uuid) for each in system.records(model)}
        assert (device.place, device.uuid) in places, model
        assert all(place.startswith("cuda") for place, _ in places), model
    for model in ("traced_on_gpu", "exported_on_gpu", "weights_on_cpu", "python_on_cpu"):
        assert {(each.device, each.uuid) for each in system.records(model)} == {("cpu", "")}, model


def test_an_instance_sees_its_own_device_only(system: System, repository: Path) -> None:
    seen = json.loads((repository / "python" / "1" / "seen.json").read_text())
    uuids = {each.uuid for each in system.records("python")}

    assert seen["visible"] in uuids
    assert seen["count"] == 1
    assert seen["current"] == 0
    assert seen["visible"].endswith(seen["uuid"].removeprefix("GPU-"))
    assert seen["device"] == "cuda:0"
    assert 1 <= seen["threads"] <= 4


def test_an_instance_on_the_cpu_sees_none(system: System, repository: Path) -> None:
    seen = json.loads((repository / "python_on_cpu" / "1" / "seen.json").read_text())

    assert (seen["visible"], seen["count"], seen["device"]) == ("", 0, "cpu")


def test_code_that_mixes_devices_is_refused_with_a_remedy(system: System) -> None:
    assert "make them with device=x.device" in system.reason("mixed")


def test_a_model_that_is_larger_than_it_may_be_is_refused(system: System) -> None:
    assert "max_gpu_memory_bytes 100: the model does not fit, its file is" in system.reason(
        "too_large"
    )


def test_onnx_runs_on_the_gpu_or_says_that_it_does_not(system: System) -> None:
    (report,) = system.registry.devices().values()
    (record, *_) = system.records("onnx_auto")

    if report.onnxruntime_gpu:
        assert record.device == "cuda:0"
        assert system.reason("onnx_gpu") == ""
        assert system.ask("onnx_gpu", [[1.0, 2.0]]) == [2.0, 4.0]
    else:
        assert record.device == "cpu"
        assert "this ONNX Runtime has no CUDA provider" in record.note
        assert "KIND_GPU, but this ONNX Runtime has no CUDA provider" in system.reason("onnx_gpu")


def test_a_batch_beyond_the_limit_is_run_in_pieces(system: System) -> None:
    rows = [[float(row), -float(row)] for row in range(32)]

    answer = system.ask("heavy", rows)

    assert answer == [2.0 * value for row in rows for value in row]

    def limit() -> int:
        return max(each.row_limit for each in system.records("heavy"))

    wait_until(lambda: 0 < limit() < 32, 30, "the limit of rows is told")


def test_a_killed_instance_costs_no_request(system: System) -> None:
    stop, wrong = Event(), list[object]()

    def ask_on(start: int) -> int:
        count = 0
        while not stop.is_set():
            value = float(start + count % 100)
            try:
                if system.ask("double_twice", [[value, 1.0]]) != [2 * value, 2.0]:
                    wrong.append(value)
            except AssertionError as error:
                wrong.append(error)
            count += 1
        return count

    before = system.records("double_twice")
    assert len(before) >= 2
    with ThreadPoolExecutor(8) as pool:
        asking = [pool.submit(ask_on, 1000 * start) for start in range(8)]
        os.kill(before[0].pid, signal.SIGKILL)

        def is_replaced() -> bool:
            now = system.records("double_twice")
            ready = {each.pid for each in now if each.state == "ready"}
            return before[0].pid not in ready and len(ready) == len(before)

        try:
            wait_until(is_replaced, LOAD_SECONDS, "the killed instance is replaced")
        finally:
            stop.set()
    assert not wrong
    assert all(each.result() for each in asking)


def test_the_figures_of_devices_and_instances_are_metrics(system: System) -> None:
    status, text = system.http("GET", "/metrics")

    assert status == 200
    assert "ferry_device_memory_total_bytes{" in text
    memory = [line for line in text.splitlines() if "memory_bytes{" in line and "heavy" in line]
    assert memory
    assert float(memory[0].rpartition(" ")[2]) > 256 * MEBIBYTE


def test_a_worker_that_may_use_none_runs_on_the_cpu(system: System, repository: Path) -> None:
    settings = Settings(
        redis_url=system.settings.redis_url, key_prefix="none", models=str(repository), gpus="none"
    )
    registry = Registry(connect(settings.redis_url), settings.key_prefix)

    def found(model: str) -> list[InstanceRecord]:
        return [each for each in registry.instances()[0] if each.model == model]

    with running_worker(settings, wait_ready=False, forked=False):
        wait_until(
            lambda: any(each.state == "ready" for each in found("python")), LOAD_SECONDS, "python"
        )
        assert {each.device for each in found("python")} == {"cpu"}
        wait_until(lambda: "double_twice" in registry.snapshot().failures, 30, "KIND_GPU refused")
        assert (
            "KIND_GPU, but this machine has 0 GPUs" in registry.snapshot().failures["double_twice"]
        )
