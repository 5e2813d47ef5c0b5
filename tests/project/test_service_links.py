"""What Kubernetes sets for a Service called `ferry` is ignored and said once, no more than that."""

from __future__ import annotations

import logging
import os
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

from ferry.up.up import child_environment
from shared.errors import BadSetting
from shared.settings import Settings, service_links, start

ROOT = Path(__file__).resolve().parents[2]
REDIS = {"REDIS_URL": "redis://cache:6379"}


def links_of(service: str, address: str, port: int, protocol: str = "tcp") -> dict[str, str]:
    """Return what a pod gets for a Service, by Kubernetes' documentation of the environment."""
    name, host = service.upper().replace("-", "_"), f"[{address}]" if ":" in address else address
    exposed = f"{name}_PORT_{port}_{protocol.upper()}"
    return {
        f"{name}_SERVICE_HOST": address,
        f"{name}_SERVICE_PORT": str(port),
        f"{name}_SERVICE_PORT_HTTP_METRICS": str(port),
        f"{name}_PORT": f"{protocol}://{host}:{port}",
        exposed: f"{protocol}://{host}:{port}",
        f"{exposed}_PROTO": protocol,
        f"{exposed}_PORT": str(port),
        f"{exposed}_ADDR": address,
    }


SERVICES = [
    links_of("ferry", "10.0.0.1", 8000),
    links_of("ferry", "fd00:10::1", 8000),
    links_of("ferry-api", "10.0.0.2", 80),
    links_of("ferry-grpc", "10.96.0.12", 8001, "udp"),
    links_of("ferry-dashboard", "10.0.0.4", 9181),
    links_of("ferry-max-queue-size", "10.0.0.5", 1, "sctp"),
]


@pytest.mark.parametrize("links", SERVICES)
def test_links_to_a_service_are_no_settings(links: dict[str, str]) -> None:
    assert Settings.from_env(links | {"FERRY_LOG_LEVEL": "ERROR"}) == Settings(log_level="ERROR")
    assert service_links(links | {"FERRY_LOG_LEVEL": "ERROR"}) == sorted(links)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("FERRY_PORT", "tcp://10.0.0.1"),
        ("FERRY_PORT", "tcp://ferry:8000"),
        ("FERRY_PORT", "http://10.0.0.1:8000"),
        ("FERRY_PORT", "10.0.0.1:8000"),
        ("FERRY_GRPC_PORT", "tcp://"),
        ("FERRY_HOST_NAME", "10.0.0.1"),
        ("FERRY_SERVICE_PORT", "http"),
        ("FERRY_SERVICE_HOST", "0.0.0.0:1:x"),
        ("FERRY_SERVICE", "10.0.0.1"),
        ("FERRY_PORT_8000", "8000"),
        ("FERRY_PROT", "tcp://10.0.0.1:8000"),
    ],
)
def test_what_is_no_link_still_stops_the_start(variable: str, value: str) -> None:
    with pytest.raises(BadSetting, match=variable):
        Settings.from_env(SERVICES[0] | {variable: value})


def test_a_process_that_serves_mentions_them_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    start(SERVICES[0] | REDIS)

    [record] = caplog.records
    assert record.getMessage().startswith("FERRY_PORT, FERRY_PORT_8000_TCP, ")
    assert "set by Kubernetes for a Service, ignored and no settings" in record.getMessage()


def test_nothing_is_said_without_them(caplog: pytest.LogCaptureFixture) -> None:
    start(REDIS | {"FERRY_PORT": "8000", "OTHER_PORT": "tcp://10.0.0.1:1"})

    assert not caplog.records


def test_processes_of_ferry_up_get_none_to_mention() -> None:
    settings = Settings.from_env(REDIS)

    environ = child_environment(settings, SERVICES[0] | {"FERRY_SERVICE_HOST": "10.0.0.1"})

    assert service_links(environ) == []
    assert Settings.from_env(environ) == settings


def test_gunicorns_processes_get_none_to_mention(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name, value in (SERVICES[0] | REDIS).items():
        monkeypatch.setenv(name, value)
    config = runpy.run_path(str(ROOT / "gunicorn.conf.py"))

    config["on_starting"](SimpleNamespace(log=logging.getLogger("gunicorn.error")))

    assert config["bind"] == "127.0.0.1:8000"
    assert len(caplog.records) == 1
    assert service_links(os.environ) == []
