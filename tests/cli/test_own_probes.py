"""Our own questions whether a process answers go straight to it, whatever proxy is set."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer

import grpc
import pytest
import yaml

from ferry.up.api_client import ask
from ferry.up.up import PROJECT_ROOT

DEAD = "http://127.0.0.1:9"
PROXIES = {f"{kind}_proxy": DEAD for kind in ("http", "https", "all", "grpc")}
PROXIES |= {name.upper(): value for name, value in PROXIES.items()}


class Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(404 if self.path == "/missing" else 200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def grpc_port() -> Iterator[int]:
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield port
    server.stop(None).wait()


def health_check(service: str) -> list[str]:
    """Return the command by which a container is looked after, Docker's own for the API."""
    if service == "api":
        lines = (PROJECT_ROOT / "Dockerfile").read_text().splitlines()
        return next(json.loads(line.strip()[4:]) for line in lines if "v2/health/live" in line)
    services = yaml.safe_load((PROJECT_ROOT / "docker-compose.yml").read_text())["services"]
    return services[service]["healthcheck"]["test"][1:]


def run_check(service: str, usual_port: int, port: int) -> int:
    python, option, code = health_check(service)
    assert python == "python"
    return subprocess.run(
        [sys.executable, option, code.replace(str(usual_port), str(port))],
        env=os.environ | PROXIES | {"FERRY_PORT": str(port)},
        cwd=PROJECT_ROOT,
        stderr=subprocess.DEVNULL,
        timeout=30,
        check=False,
    ).returncode


def test_ferry_up_asks_the_api_past_a_proxy(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in PROXIES.items():
        monkeypatch.setenv(name, value)

    assert ask(f"http://127.0.0.1:{port}/v2/health/ready").is_good
    assert not ask(f"http://127.0.0.1:{port}/missing").is_good


@pytest.mark.parametrize(("service", "usual_port"), [("api", 8000), ("dashboard", 9181)])
def test_a_container_is_asked_past_a_proxy(service: str, usual_port: int, port: int) -> None:
    assert run_check(service, usual_port, port) == 0
    assert run_check(service, usual_port, 9) != 0


def test_the_grpc_container_is_asked_past_a_proxy(grpc_port: int) -> None:
    assert run_check("grpc", 8001, grpc_port) == 0
