"""`ferry doctor`: each thing that is wrong is found, on a real server, with what to do."""

from __future__ import annotations

import json
import resource
import socket
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from redis import Redis
from registered import register, report_failure, spec
from store_server import StoreServer, store_servers

from ferry.cli import main
from ferry.commands.doctor import of_machine, of_redis, of_worker
from ferry.up.embedded_valkey import EmbeddedValkey, running
from shared.registry.device_report import Device, DeviceReport
from shared.settings import Settings

Doctor = Callable[[], tuple[int, dict[str, dict[str, str]]]]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Leave no Redis, no repository, ports that are free, and torch as it is found elsewhere."""
    report = DeviceReport(torch="2.13.0")
    monkeypatch.setattr(of_worker, "in_own_process", lambda *_: report)
    monkeypatch.delenv("REDIS_URL", raising=False)
    monkeypatch.setenv("FERRY_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("FERRY_MODELS", str(tmp_path / "models"))
    for name in ("PORT", "GRPC_PORT", "DASHBOARD_PORT"):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            monkeypatch.setenv(f"FERRY_{name}", str(probe.getsockname()[1]))


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedValkey]:
    with running(tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest.fixture
def redis(own: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch) -> Iterator[Redis]:
    """A server of the module's own, as Ferry would have it."""
    monkeypatch.setenv("REDIS_URL", own.url)
    with Redis.from_url(own.url) as client:
        client.flushall()
        client.config_set("appendonly", "yes")
        client.config_set("maxmemory", 0)
        client.config_set("maxmemory-policy", "noeviction")
        yield client


@pytest.fixture
def doctor(capsys: pytest.CaptureFixture[str]) -> Doctor:
    """Run it; return the exit code, and what was found by what was looked at."""

    def run() -> tuple[int, dict[str, dict[str, str]]]:
        code = main(["doctor", "--json"])
        rows: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
        assert all(bool(row["action"]) == (row["state"] != "ok") for row in rows)
        order = [["error", "warning", "ok"].index(row["state"]) for row in rows]
        assert order == sorted(order)
        assert code == (1 if 0 in order else 0)
        return code, {row["check"]: row for row in reversed(rows)}

    return run


def test_a_server_as_it_should_be(redis: Redis, doctor: Doctor) -> None:
    code, found = doctor()

    assert code == 0
    for check in ("redis", "persistence", "maxmemory-policy", "memory", "latency", "clock"):
        assert found[check]["state"] == "ok", found[check]
    assert "a lone request makes 2.3" in found["latency"]["found"]


@pytest.mark.parametrize(
    ("setting", "value", "check", "said"),
    [
        ("appendonly", "no", "persistence", "no append-only file"),
        ("maxmemory-policy", "allkeys-lru", "maxmemory-policy", "allkeys-lru"),
        ("maxmemory-policy", "volatile-ttl", "maxmemory-policy", "volatile-ttl"),
    ],
)
def test_settings_that_lose_requests(
    redis: Redis, doctor: Doctor, setting: str, value: str, check: str, said: str
) -> None:
    redis.config_set(setting, value)

    _, found = doctor()

    assert found[check]["state"] == "warning"
    assert said in found[check]["found"]


def test_eviction_below_a_limit_is_an_error(redis: Redis, doctor: Doctor) -> None:
    redis.config_set("maxmemory", "64mb")
    redis.config_set("maxmemory-policy", "allkeys-lru")

    code, found = doctor()

    assert code == 1
    assert found["redis"]["state"] == "error"
    assert "set maxmemory-policy noeviction" in found["redis"]["found"]


def test_durable_without_a_file_is_an_error(
    redis: Redis, doctor: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    redis.config_set("appendonly", "no")
    monkeypatch.setenv("FERRY_DURABLE", "1")

    code, found = doctor()

    assert (code, found["persistence"]["state"]) == (1, "error")


def test_a_memory_that_is_nearly_full(redis: Redis, doctor: Doctor) -> None:
    redis.config_set("maxmemory", int(redis.info("memory")["used_memory"] * 1.05))

    code, found = doctor()

    assert code == 1
    assert "raise maxmemory" in found["memory"]["action"]


def test_models_that_are_not_served_and_workers_that_are_not_there(
    redis: Redis, own: EmbeddedValkey, doctor: Doctor
) -> None:
    assert doctor()[1]["workers"]["found"] == "no worker gives a sign of life"
    settings = Settings(redis_url=own.url)
    register(settings, spec("good"))
    report_failure(settings, "bad", "bad/config.pbtxt: line 3")

    code, found = doctor()

    assert code == 1
    assert found["model good/1"]["state"] == "ok"
    assert found["model bad"]["found"] == "bad/config.pbtxt: line 3"


def test_a_clock_and_a_distance_that_are_off(
    redis: Redis, doctor: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time
    monkeypatch.setattr(of_redis.time, "time", lambda: now() - 5.0)
    monkeypatch.setattr(of_redis, "FAR_MS", 0.0)

    _, found = doctor()

    assert found["clock"]["state"] == found["latency"]["state"] == "warning"
    assert "behind Redis's" in found["clock"]["found"]


def test_a_redis_that_is_away_is_an_error_and_none_at_all_is_not(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert doctor()[1]["redis"]["state"] == "warning"
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")

    code, found = doctor()

    assert (code, found["redis"]["state"]) == (1, "error")
    assert "no Redis at redis://127.0.0.1:1" in found["redis"]["found"]


def test_what_is_wrong_with_the_machine(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    unused = DeviceReport(torch="2.13.0", reason="torch is a build for the CPU")
    monkeypatch.setattr(of_worker, "in_own_process", lambda *_: unused)
    monkeypatch.setattr(of_machine, "default_cores", lambda: 2)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 1024))
    monkeypatch.setenv("FERRY_CPU_THREADS", "8")
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    monkeypatch.setenv("HTTP_PROXY", "http://proxy:3128")
    (tmp_path / "models" / "no model").mkdir(parents=True)

    code, found = doctor()

    assert code == 1
    assert "torch is a build for the CPU" in found["torch"]["found"]
    assert {"FERRY_CPU_THREADS=8" in found["cores"]["found"], "OMP" in found["cores"]["found"]} == {
        True, False
    }  # fmt: skip
    assert "at most 1024" in found["open files"]["found"]
    assert found["proxies"]["action"] == "export NO_PROXY=127.0.0.1,localhost"
    assert found["repository"]["state"] == "warning"
    monkeypatch.setenv("no_proxy", "localhost, 127.0.0.1")
    assert doctor()[1]["proxies"]["state"] == "ok"


def test_gpus_that_can_be_used_are_counted(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = DeviceReport(torch="2.13.0", torch_cuda="13.0", devices=(Device(index=0, uuid="GPU-1"),))
    monkeypatch.setattr(of_worker, "in_own_process", lambda *_: seen)

    assert doctor()[1]["torch"]["found"] == "2.13.0 for CUDA 13.0, 1 GPUs to use"


def test_a_port_that_is_taken(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setenv("FERRY_GRPC_PORT", str(port))
        monkeypatch.setenv("FERRY_METRICS_PORT", "0")

        code, found = doctor()

    assert code == 1
    assert "FERRY_GRPC_PORT: cannot listen on 127.0.0.1" in found[f"port {port}"]["found"]


@pytest.mark.parametrize(
    ("said", "state"), [(b"ferry_worker_instances 1", "ok"), (b"another_thing 1", "warning")]
)
def test_a_port_that_a_worker_of_ferrys_has_taken(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch, said: bytes, state: str
) -> None:
    """As in a worker's container, where no API says that Ferry runs here."""
    with HTTPServer(("127.0.0.1", 0), type("Metrics", (Said,), {"said": said})) as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv("FERRY_METRICS_PORT", str(server.server_port))

        found = doctor()[1]

        server.shutdown()
    assert found[f"port {server.server_port}"]["state"] == state


class Said(BaseHTTPRequestHandler):
    """Answers every GET with what is `said`."""

    said = b""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.said)

    def log_message(self, *_: object) -> None:
        return


def test_an_image_without_workers_says_so(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(of_machine, "find_spec", lambda _: None)

    found = doctor()[1]

    assert found["worker"]["state"] == "ok"
    assert not {"torch", "repository"} & found.keys()


def test_people_get_a_table(redis: Redis, capsys: pytest.CaptureFixture[str]) -> None:
    redis.config_set("appendonly", "no")

    assert main(["doctor"]) == 0

    first, *lines = capsys.readouterr().out.splitlines()
    assert first.split() == ["check", "found", "to", "do"]
    (line,) = [line for line in lines if line.startswith("persistence")]
    assert "WARNING" in line
    assert line.endswith("CONFIG SET appendonly yes, and in its configuration")


def test_a_body_store_that_keeps_nothing_is_fine(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch, redis: Redis
) -> None:
    with store_servers(1) as (server,):
        server.redis.config_set("maxmemory", "100mb")
        url = server.url.replace("unix://", "unix://default:s3cret@")
        server.redis.config_set("requirepass", "s3cret")
        monkeypatch.setenv("FERRY_BODY_URLS", url)
        _, found = doctor()

    (name,) = [check for check in found if check.startswith("body store")]
    assert "s3cret" not in name
    assert found[name]["state"] == "ok", found[name]


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("maxmemory", "0", "no maxmemory"),
        ("maxmemory-policy", "allkeys-lru", "throws bodies away"),
        ("appendonly", "yes", "append-only file"),
        ("save", "900 1", "snapshots"),
    ],
)
def test_a_body_store_s_setting_that_is_wrong_is_found(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch, redis: Redis, name: str, value: str, said: str
) -> None:
    with store_servers(1) as (server,):
        server.redis.config_set("maxmemory", "100mb")
        server.redis.config_set(name, value)
        monkeypatch.setenv("FERRY_BODY_URLS", server.url)
        _, found = doctor()

    (finding,) = [each for check, each in found.items() if check.startswith("body store")]
    assert (finding["state"], said in finding["found"]) == ("warning", True), finding
    assert "CONFIG SET" in finding["action"]


def test_io_threads_on_few_cores_are_found(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch, redis: Redis, tmp_path: Path
) -> None:
    server = StoreServer(tmp_path, ("--io-threads", "2", "--maxmemory", "100mb"))
    monkeypatch.setenv("FERRY_BODY_URLS", server.url)
    monkeypatch.setattr(of_redis, "default_cores", lambda: of_redis.CORES_FOR_IO_THREADS - 1)
    few = doctor()[1][f"body store {server.url}"]
    monkeypatch.setattr(of_redis, "default_cores", lambda: of_redis.CORES_FOR_IO_THREADS)
    many = doctor()[1][f"body store {server.url}"]
    server.close()

    assert (few["state"], "io-threads" in few["found"]) == ("warning", True), few
    assert many["state"] == "ok", many


def test_a_body_store_that_is_away_is_found(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch, redis: Redis
) -> None:
    monkeypatch.setenv("FERRY_BODY_URLS", "redis://127.0.0.1:1")
    code, found = doctor()

    assert code == 1
    assert "does not answer" in found["body store redis://127.0.0.1:1"]["found"]
