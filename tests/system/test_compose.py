"""docker-compose.yml keeps to the compose specification and runs what the Procfile runs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import yaml
from compose_spec import PyCompose
from waiting import wait_until

from ferry.up.processes import read_procfile
from ferry.up.up import PROJECT_ROOT
from shared.access.protected import check_protected
from shared.settings import Settings
from tools import compose_story, engines
from tools.settings_table import OF_CONTAINERS, variables
from tools.settings_table import compose as with_settings

PROCESSES = read_procfile(PROJECT_ROOT / "Procfile")


TEXT = (PROJECT_ROOT / "docker-compose.yml").read_text()
DOCKERFILE = (PROJECT_ROOT / "Dockerfile").read_text()
OTHERS = {
    "redis": "valkey/valkey:8.1-alpine",
    "nginx": "nginx:1.28-alpine",
    "prometheus": "prom/prometheus:v3.7.3",
    "grafana": "grafana/grafana:12.3.0",
}


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load(re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", TEXT))


def before(services: dict[str, Any], name: str) -> set[str]:
    """Return what Compose stops only after `name`: what that depends on, and so on."""
    needed = set(services[name].get("depends_on", {}))
    return needed.union(*(before(services, each) for each in needed))


def environment(service: dict[str, Any]) -> dict[str, str]:
    # Compose fills in after it has read the YAML, so what is empty stays a string.
    return {
        name: "" if value is None else str(value) for name, value in service["environment"].items()
    }


def test_it_keeps_to_the_specification(compose):
    parsed = PyCompose.from_yaml(yaml.safe_dump(compose))

    assert set(parsed.service_names()) == {*OTHERS, "worker-gpu", *PROCESSES}


@pytest.mark.parametrize(
    ("service", "key", "value"),
    [
        ("api", "colour", "red"),
        ("api", "restart", "now and then"),
        ("redis", "healthcheck", {"interval": "soon"}),
        ("worker", "depends_on", {"redis": {"condition": "fine"}}),
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
def test_a_service_has_settings_that_exist_and_waits_for_redis(compose, name):
    service = compose["services"][name]

    settings = Settings.from_env(environment(service))

    assert settings.redis_url == "redis://redis:6379/0"
    assert service["depends_on"]["redis"] == {"condition": "service_healthy"}


@pytest.mark.parametrize("name", PROCESSES)
def test_every_setting_is_passed_on_but_what_is_another_inside(compose, name):
    passed = {
        variable
        for variable in compose["services"][name]["environment"]
        if f"{variable}: ${{{variable}:-}}\n" in TEXT
    }

    assert passed == variables() - OF_CONTAINERS
    assert with_settings(TEXT) == TEXT, "run make docs"


def test_who_becomes_another_user_is_told_to_stop_without_an_init(compose):
    for name, service in compose["services"].items():
        assert service["init"] is not ("SETUID" in service.get("cap_add", [])), name


def test_podman_keeps_the_words_of_a_health_check_together(compose):
    checks = [each["healthcheck"] for each in compose["services"].values() if "healthcheck" in each]

    assert not [word for each in checks for word in each.get("test", []) if " " in word]


def test_a_jobs_worker_is_not_asked_for_the_models_of_a_worker(compose):
    assert compose["services"]["jobs"]["healthcheck"] == {"disable": True}


def test_what_answers_is_stopped_after_what_asks(compose):
    services = compose["services"]

    assert before(services, "nginx") == {"api", "grpc", "worker", "worker-gpu", "redis"}
    for name in ("api", "grpc", "jobs"):
        assert before(services, name) == {"worker", "worker-gpu", "redis"}
        # Either may be left out: the one by its profile, the other by --scale worker=0.
        assert not services[name]["depends_on"]["worker"]["required"]
        assert not services[name]["depends_on"]["worker-gpu"]["required"]
    assert before(services, "dashboard") == {"redis"}


@pytest.mark.parametrize("name", ["api", "grpc", "worker", "jobs"])
def test_what_is_scaled_has_neither_a_name_nor_a_port_of_the_host(compose, name):
    assert not {"container_name", "ports", "hostname"} & set(compose["services"][name])


def test_only_the_loopback_of_the_host_is_listened_on(compose):
    services = compose["services"]
    ports = {name: each["ports"] for name, each in services.items() if "ports" in each}

    assert ports == {
        "nginx": ["127.0.0.1:8000:8000", "127.0.0.1:8001:8001"],
        "dashboard": ["127.0.0.1:9181:9181"],
        "prometheus": ["127.0.0.1:9090:9090"],
        "grafana": ["127.0.0.1:3000:3000"],
    }


def test_a_service_hears_signals_and_may_do_little_else(compose):
    for name, service in compose["services"].items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["mem_limit"], name
        assert service["stop_grace_period"], name
        assert service["logging"]["options"] == {"max-size": "10m", "max-file": "3"}, name
    assert compose["services"]["worker"]["volumes"] == ["./models:/models:ro"]


def test_every_image_is_a_target_of_the_dockerfile_and_built_once(compose):
    targets = set(re.findall(r"^FROM \S+ AS (\w+)$", DOCKERFILE, re.MULTILINE)) - {"base"}
    services = compose["services"]
    built = [each["image"] for each in services.values() if "build" in each]

    assert sorted(built) == ["ferry-api", "ferry-worker", "ferry-worker-gpu"]
    # The image `server` is all of them in one, for where there is no compose.
    assert {f"ferry-{target}" for target in targets} - {"ferry-server"} < set(built)
    assert {each["image"] for each in services.values()} == {*built, *OTHERS.values()}


def test_prometheus_and_grafana_come_by_their_profiles_and_read_what_is_deployed(compose):
    services = compose["services"]
    config = yaml.safe_load((PROJECT_ROOT / "deploy/prometheus/compose.yml").read_text())
    api, worker = config["scrape_configs"]

    assert services["prometheus"]["profiles"] == ["prometheus", "grafana"]
    assert services["grafana"]["profiles"] == ["grafana"]
    assert api["static_configs"] == [{"targets": ["nginx:8000"]}]
    (found,) = worker["dns_sd_configs"]
    assert set(found["names"]) < services.keys()
    assert found["port"] == Settings().metrics_port
    for name in found["names"]:
        assert environment(services[name])["FERRY_HOST"] == "0.0.0.0"
    for volume in (each for name in OTHERS for each in services[name]["volumes"]):
        source = volume.partition(":")[0]
        assert not source.startswith("./") or (PROJECT_ROOT / source).exists()


def test_the_usual_images_hold_torch_for_the_cpu_on_a_base_that_can_be_pinned(compose):
    services = compose["services"]

    args = services["worker"]["build"]["args"]
    assert args["PIP_EXTRA_INDEX_URL"].endswith("/whl/cpu")
    assert "PIP_EXTRA_INDEX_URL" not in services["worker-gpu"]["build"]["args"]
    assert DOCKERFILE.count("\nFROM ${BASE} ") == 1
    for name in ("api", "worker", "worker-gpu"):
        assert services[name]["build"]["args"]["BASE"] in DOCKERFILE
        assert "\nUSER ferry\n" in DOCKERFILE.partition(" AS worker\n")[name != "api" and 2]


def test_what_an_image_copies_is_sent_to_its_builder():
    ignored = (PROJECT_ROOT / ".dockerignore").read_text().splitlines()
    lines = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE)
    copied = {name.removesuffix("/") for line in lines for name in line.split()}
    copied |= {"requirements/worker.txt", "requirements/gpu.txt"}
    copied -= {"requirements/${PACKAGES}.txt"}

    assert ignored[0] == "*"
    assert {line.removeprefix("!") for line in ignored if line.startswith("!")} == copied


IMPORTING = """
import importlib, importlib.metadata, pathlib, pkgutil, re, sys

lock, packages = sys.argv[1], sys.argv[2:]
there = {re.sub(r"[-_.]+", "-", line.partition("==")[0]).lower()
         for line in pathlib.Path(lock).read_text().splitlines() if "==" in line}
owners = importlib.metadata.packages_distributions()

class Lacking:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        names = {re.sub(r"[-_.]+", "-", each).lower() for each in owners.get(top, ())} - {"ferry"}
        ours = {"worker", "samples"} - ({"worker", "samples"} if "worker" in packages else set())
        if (names and not names & there) or top in ours:
            raise ModuleNotFoundError(f"No module named {top!r}", name=top)

sys.meta_path.insert(0, Lacking())
for package in packages:
    top = importlib.import_module(package)
    for module in pkgutil.walk_packages(top.__path__, f"{package}.", onerror=lambda name: None):
        if not module.name.endswith("__main__"):
            try:
                importlib.import_module(module.name)
            except ModuleNotFoundError as error:
                print(module.name, error.name)
"""


def lacking(lock: str, *packages: str) -> dict[str, str]:
    """Return which modules cannot be imported with a lock's packages, and what each lacks."""
    command = [sys.executable, "-c", IMPORTING, f"requirements/{lock}.txt", *packages]
    run = subprocess.run(command, cwd=PROJECT_ROOT, check=True, capture_output=True, text=True)
    return dict(line.split() for line in run.stdout.splitlines())


def test_the_commands_that_look_inside_run_in_the_image_of_the_api():
    without = lacking("api", "shared", "jobs", "ferry")

    assert set(without.values()) <= {"worker", "honcho"}
    for name in ("workers", "queues", "dead"):
        assert f"ferry.commands.looking.{name}" not in without
    for name in ("doctor", "of_machine", "of_redis"):
        assert f"ferry.commands.doctor.{name}" not in without
    assert not {"ferry.cli", "ferry.commands.models", "ferry.commands.predict"} & without.keys()


def test_every_command_but_up_and_samples_runs_in_the_image_of_the_worker():
    without = lacking("worker", "shared", "jobs", "worker", "ferry")
    torch_looks_for_it = "worker.backends.programs.graph_texts"

    assert without.keys() - {torch_looks_for_it} == {
        "ferry.up.up", "ferry.up.processes", "jobs.dashboard", "worker.backends.joblib_pipeline",
    }  # fmt: skip


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
    assert own == environment(usual)
    for key in ("command", "volumes", "depends_on", "healthcheck", "stop_grace_period"):
        assert service[key] == usual[key]


def test_the_gpu_image_has_the_workers_packages_and_onnxruntime_gpu_in_onnxruntimes_place(compose):
    build = compose["services"]["worker-gpu"]["build"]
    worker, gpu = (
        {
            line.partition("==")[0]: line
            for line in (PROJECT_ROOT / "requirements" / f"{name}.txt").read_text().splitlines()
            if "==" in line
        }
        for name in ("worker", build["args"]["PACKAGES"])
    )

    assert "ARG PACKAGES=worker\nCOPY requirements/${PACKAGES}.txt" in DOCKERFILE
    assert gpu.keys() - worker.keys() == {"onnxruntime-gpu", "nvidia-ml-py"}
    assert worker.keys() - gpu.keys() == {"onnxruntime"}
    assert all(gpu[name] == worker[name] for name in gpu.keys() & worker.keys())


def test_the_api_image_holds_no_torch():
    packages = (PROJECT_ROOT / "requirements" / "api.txt").read_text()

    assert "flask==" in packages
    assert "torch" not in packages


@pytest.mark.parametrize("page", ["docs/deploy.md", "Dockerfile"])
def test_one_container_starts_as_it_is_told_to(page):
    (command,) = re.findall(r"docker run (.*) ferry-server", (PROJECT_ROOT / page).read_text())
    server = DOCKERFILE.partition(" AS server\n")[2]
    variables_set = re.findall(r"(FERRY_\w+)=(\S+)", server + command)

    check_protected(Settings.from_env(dict(variables_set)))


class Answering(BaseHTTPRequestHandler):
    """Is ready, and answers in the form of v2, each `period`th request otherwise than before."""

    count, period = 0, 20

    def do_GET(self) -> None:
        self.answer(b"{}")

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        Answering.count += 1
        data = asked["inputs"][0]["data"][: 2 if Answering.count % self.period == 0 else 3]
        self.answer(json.dumps({"outputs": [{"data": data}]}).encode())

    def answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def proxy() -> Iterator[int]:
    """A port of what stands in for the proxy."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Answering) as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def test_the_storys_clients_tell_wrong_answers_from_right_ones(proxy):
    load = compose_story.Load(proxy)
    with load.running():
        wait_until(lambda: load.right > 50 and load.wrong, 30, "both came")


FAKE = f"""#!/bin/sh
echo "${{0##*/}} $* $COMPOSE_PROJECT_NAME $DOCKER_HOST" >> "${{0%/*}}/log"
case "$*" in
*torch*) echo False ;;
*quiet*) echo 0123abcd ;;
*service*) exec {sys.executable} -c "import socket, sys, time
server = socket.socket(socket.AF_UNIX)
server.bind(sys.argv[1].removeprefix('unix://'))
server.listen()
time.sleep(60)" "$5" ;;
esac
"""


@pytest.fixture
def log(tmp_path, monkeypatch, proxy):
    """The file to which commands write how they were called, in a story of a second."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("FERRY_PORT", str(proxy))
    monkeypatch.setattr(compose_story, "LOAD_SECONDS", 0.2)
    monkeypatch.setattr(engines, "CHECK_SECONDS", 0.05)
    monkeypatch.setattr(engines, "SYSTEMD", tmp_path / "no-systemd")
    return tmp_path / "log"


def put(log: Path, *commands: str) -> None:
    for name in commands:
        program = log.parent / name
        program.write_text(FAKE)
        program.chmod(0o755)


@pytest.mark.parametrize(("period", "exit_code"), [(10**9, 0), (20, 1)])
def test_the_story_is_told_in_a_project_of_its_own(log, monkeypatch, capsys, period, exit_code):
    put(log, "docker")
    monkeypatch.setattr(Answering, "period", period)

    assert compose_story.main() == exit_code
    called = log.read_text().splitlines()
    for part in ("compose up", "kill", "restart", "compose stop", "compose down --volumes"):
        assert any(line.startswith(f"docker {part} ") for line in called), part
    assert {line.split()[-1] for line in called if " up " in line} == {engines.PROJECT}
    assert ("another" in capsys.readouterr().out) is bool(exit_code)


def test_podman_is_served_to_docker_compose_and_told_to_look_at_healths(log, monkeypatch):
    put(log, "podman", "docker-compose")
    monkeypatch.setattr(Answering, "period", 10**9)

    assert compose_story.main() == 0
    called = log.read_text().splitlines()
    (up,) = (line for line in called if " up " in line)
    (served,) = (line.split()[5] for line in called if line.startswith("podman system service"))
    assert up.startswith("docker-compose --file docker-compose.yml --file ")
    assert up.endswith(f" {engines.PROJECT} {served}")
    assert any(line.startswith("podman healthcheck run 0123abcd") for line in called)
    assert not Path(served.removeprefix("unix://")).exists()


def test_the_story_needs_an_engine_and_says_so(log, capsys):
    put(log, "podman")  # and no Compose

    assert compose_story.main() == 2
    assert "docker-compose" in capsys.readouterr().err
