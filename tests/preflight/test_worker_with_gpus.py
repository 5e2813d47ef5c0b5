"""A real worker whose NVML knows GPUs that torch's CPU build cannot use: it serves, and says so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import fake_nvml
import pytest
from ferry_processes import ROOT, environment, running_worker
from formats_repository import add_format
from waiting import wait_until

from api.app import create_app
from shared.registry.desired_store import DesiredStore
from shared.registry.device_report import Device, DeviceReport
from shared.registry.registry import Registry
from shared.registry.repository_index import repository_index
from shared.settings import Settings
from shared.wire.client import connect
from worker.preflight.look import choose
from worker.supervisor.devices.device_watch import DeviceRegister

WHY = "torch sees no GPU, though there is one: torch"
GPU = "\ninstance_group [ { kind: KIND_GPU gpus: [5] } ]\n"


@dataclass
class Worker:
    """A worker that runs: its settings, its registry, its log, its environment."""

    settings: Settings
    registry: Registry
    log: Path
    environ: dict[str, str]

    def index(self) -> dict[str, tuple[str, str]]:
        entries = repository_index(self.registry.snapshot())
        return {each["name"]: (each["state"], each["reason"]) for each in entries}


@pytest.fixture(scope="module")
def worker(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """It serves a model with KIND_AUTO, one with KIND_CPU, one ONNX model with KIND_GPU."""
    folder = tmp_path_factory.mktemp("gpus")
    (folder / "path").mkdir()
    (folder / "path" / "pynvml.py").write_text(Path(fake_nvml.__file__).read_text())
    models = folder / "models"
    add_format(models, "torchscript", "auto")
    add_format(models, "torchscript", "cpu")
    add_format(models, "onnx", "gpu")
    for name, group in (("cpu", "\ninstance_group [ { kind: KIND_CPU } ]\n"), ("gpu", GPU)):
        with (models / name / "config.pbtxt").open("a") as config:
            config.write(group)
    settings = Settings(redis_url=redis_url, key_prefix="gpus", models=str(models))
    log = folder / "worker.log"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder / "path"))
        patch.delenv("FERRY_GPUS")
        registry = Registry(connect(redis_url), settings.key_prefix)
        with running_worker(settings, wait_ready=False, log_file=log, forked=False):
            found = Worker(settings, registry, log, os.environ | environment(settings))

            def is_settled() -> bool:
                states = {name: state for name, (state, _) in found.index().items()}
                return states == {"auto": "READY", "cpu": "READY", "gpu": "UNAVAILABLE"}

            wait_until(is_settled, 60, "what can be served is ready")
            yield found


def test_the_index_says_why_a_model_is_on_the_cpu(worker: Worker) -> None:
    index = worker.index()

    assert index["auto"][1].startswith(f"runs on the CPU: {WHY}")
    assert index["cpu"] == ("READY", "")
    assert "instance_group: gpus [5], but this machine has 0 GPUs" in index["gpu"][1]


def test_the_log_has_it_once_for_the_machine_and_once_for_the_model(worker: Worker) -> None:
    lines = worker.log.read_text().splitlines()

    assert len([line for line in lines if "WARNING" in line and f": {WHY}" in line]) == 2
    assert len([line for line in lines if "auto/1: runs on the CPU" in line]) == 1


def test_the_metrics_have_it_and_the_figures(worker: Worker) -> None:
    page = create_app(worker.settings).test_client().get("/metrics").text

    assert f'reason="{WHY}' in page.split("ferry_device_unusable{")[1]
    assert f'reason="runs on the CPU: {WHY}' in page.split("ferry_model_warning{")[1]
    power = next(line for line in page.splitlines() if line.startswith("ferry_device_power_watts{"))
    assert 'device="",' in power
    assert 'uuid="GPU-aaaa-0"' in power
    assert power.endswith(" 123.4")
    faulty = [line for line in page.splitlines() if line.startswith("ferry_device_faulty{")]
    assert sorted(line[-3:] for line in faulty) == ["0.0", "0.0", "1.0", "1.0"]


def test_ferry_devices_says_the_same_and_fails(worker: Worker) -> None:
    command = [sys.executable, "-m", "ferry", "devices"]
    shown, as_json = (
        subprocess.run(
            [*command, *more], env=worker.environ, cwd=ROOT, capture_output=True, text=True,
            check=False,
        )
        for more in ([], ["--json"])
    )  # fmt: skip

    assert (shown.returncode, as_json.returncode) == (1, 1)
    assert WHY in shown.stdout
    assert "MIG-cccc-2" in shown.stdout
    assert "have it replaced" in shown.stdout
    report = json.loads(as_json.stdout)
    assert report["driver"] == "570.10.1"
    assert [each["uuid"] for each in report["devices"]][:2] == ["GPU-aaaa-0", "MIG-cccc-0"]


def test_two_workers_that_take_the_same_gpu_say_so(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    both = DeviceReport(devices=(Device(index=0, uuid="GPU-a"), Device(index=1, uuid="GPU-b")))
    theirs = both.model_copy(update={"devices": choose(both.devices, "1")[0]})
    with connect(settings.redis_url) as redis:
        registry = Registry(redis, settings.key_prefix)
        for name in ("ours", "theirs"):
            registry.beat(name, 60.0)
        ours = DeviceRegister("ours", registry)
        DeviceRegister("theirs", registry).write(theirs)

        ours.write(both)
        assert not caplog.messages, "it may have been killed and started again"
        for _ in range(3):
            ours.write(both)

        assert registry.devices()["ours"].contested == {"GPU-b": "theirs"}
        assert caplog.messages == ["GPU-b: theirs uses it too, share the GPUs out by FERRY_GPUS"]
        page = create_app(settings).test_client().get("/metrics").text
        assert 'ferry_device_contested{by="theirs",host="",uuid="GPU-b"} 1.0' in page

        ours.write(both.model_copy(update={"devices": choose(both.devices, "0")[0]}))
        assert registry.devices()["ours"].contested == {}


def test_a_report_leaves_with_its_supervisor(settings: Settings) -> None:
    with connect(settings.redis_url) as redis:
        registry = Registry(redis, settings.key_prefix)
        for name in ("stopped", "lost", "lives"):
            registry.put_devices(name, DeviceReport(host=name))
        registry.beat("stopped", 60.0)
        registry.beat("lives", 60.0)
        assert registry.devices().keys() == {"stopped", "lives"}

        for name in ("stopped", "lost"):
            DesiredStore(redis, settings.key_prefix).drop_report(name)

        assert [*registry.devices().values()] == [DeviceReport(host="lives")]
        assert redis.hkeys(f"{settings.key_prefix}:devices") == [b"lives"]
