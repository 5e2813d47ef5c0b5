"""docker-compose.yml keeps to the compose specification and runs what the Procfile runs."""

from __future__ import annotations

import re
import subprocess
from typing import Any

import pytest
import yaml
from compose_spec import PyCompose

from ferry.up.processes import read_procfile
from ferry.up.up import PROJECT_ROOT
from shared.settings import Settings

PROCESSES = read_procfile(PROJECT_ROOT / "Procfile")


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    text = (PROJECT_ROOT / "docker-compose.yml").read_text()
    defaults = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)
    return yaml.safe_load(defaults)


def environment(service: dict[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in service["environment"].items()}


def test_it_keeps_to_the_specification(compose):
    parsed = PyCompose.from_yaml(yaml.safe_dump(compose))

    assert sorted(parsed.service_names()) == sorted(["valkey", "worker-gpu", *PROCESSES])


@pytest.mark.parametrize(
    ("service", "key", "value"),
    [
        ("api", "colour", "red"),
        ("api", "restart", "now and then"),
        ("valkey", "healthcheck", {"interval": "soon"}),
        ("worker", "depends_on", {"valkey": {"condition": "fine"}}),
        ("dashboard", "ports", ["here:there"]),
    ],
)
def test_the_check_sees_what_is_wrong(compose, service, key, value):
    services = compose["services"] | {service: compose["services"][service] | {key: value}}

    with pytest.raises(ValueError, match=key):
        PyCompose.from_yaml(yaml.safe_dump(compose | {"services": services}))


@pytest.mark.parametrize("name", PROCESSES)
def test_a_service_runs_the_command_of_the_procfile(compose, name):
    service = compose["services"][name]
    script = PROCESSES[name].removeprefix("exec ")
    # A container's loopback is its own: what is to be reached listens everywhere inside of it.
    script = script.replace("--bind 127.0.0.1", "--bind 0.0.0.0")

    expanded = subprocess.run(
        ["sh", "-c", f"printf '%s\\n' {script}"],
        env=environment(service),
        check=True,
        capture_output=True,
        text=True,
    )

    assert service["command"] == expanded.stdout.splitlines()


@pytest.mark.parametrize("name", PROCESSES)
def test_a_service_has_settings_that_exist_and_waits_for_valkey(compose, name):
    service = compose["services"][name]

    settings = Settings.from_env(environment(service))

    assert settings.redis_url == "redis://valkey:6379/0"
    assert service["depends_on"]["valkey"] == {"condition": "service_healthy"}


def test_the_worker_can_be_scaled(compose):
    assert not {"container_name", "ports", "hostname"} & set(compose["services"]["worker"])
    assert compose["services"]["worker"]["volumes"] == ["./models:/models:ro"]


def test_only_the_loopback_of_the_host_is_listened_on(compose):
    ports = [port for service in compose["services"].values() for port in service.get("ports", [])]

    assert ports == ["127.0.0.1:8000:8000", "127.0.0.1:8001:8001", "127.0.0.1:9181:9181"]


def test_every_image_is_a_target_of_the_dockerfile(compose):
    dockerfile = (PROJECT_ROOT / "Dockerfile").read_text()
    targets = set(re.findall(r"^FROM \S+ AS (\w+)$", dockerfile, re.MULTILINE)) - {"base"}

    assert {s["image"] for s in compose["services"].values()} == {
        "valkey/valkey:8.1-alpine",
        "ferry-worker-gpu",
        *(f"ferry-{target}" for target in targets),
    }


def test_with_the_profile_gpu_one_worker_of_a_host_has_its_gpus(compose):
    service, usual = compose["services"]["worker-gpu"], compose["services"]["worker"]

    assert service["profiles"] == ["gpu"]
    assert service["container_name"] == "ferry-worker-gpu"
    assert service["deploy"]["resources"]["reservations"]["devices"] == [
        {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
    ]
    own = environment(service)
    assert own.pop("NVIDIA_VISIBLE_DEVICES") == "all"
    assert own.pop("NVIDIA_DRIVER_CAPABILITIES") == "compute,utility"
    assert own.pop("FERRY_GPUS") == "None"
    assert own == environment(usual)
    for key in ("command", "volumes", "depends_on", "init", "stop_grace_period", "restart"):
        assert service[key] == usual[key]


def test_the_gpu_image_has_the_workers_packages_and_onnxruntime_gpu_in_onnxruntimes_place(compose):
    build = compose["services"]["worker-gpu"]["build"]
    dockerfile = (PROJECT_ROOT / "Dockerfile").read_text()
    worker, gpu = (
        {
            line.partition("==")[0]: line
            for line in (PROJECT_ROOT / "requirements" / f"{name}.txt").read_text().splitlines()
            if "==" in line
        }
        for name in ("worker", build["args"]["PACKAGES"])
    )

    assert "ARG PACKAGES=worker\nCOPY requirements/${PACKAGES}.txt" in dockerfile
    assert gpu.keys() - worker.keys() == {"onnxruntime-gpu", "nvidia-ml-py"}
    assert worker.keys() - gpu.keys() == {"onnxruntime"}
    assert all(gpu[name] == worker[name] for name in gpu.keys() & worker.keys())


def test_the_api_image_holds_no_torch():
    packages = (PROJECT_ROOT / "requirements" / "api.txt").read_text()

    assert "flask==" in packages
    assert "torch" not in packages
