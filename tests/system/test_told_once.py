"""A Redis that refuses who asks is one line with the cause in each log, not one for each try."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from answers import answer, refusal
from counting_model import counting_model, tensor
from ferry_processes import ROOT, environment
from redis import Redis
from waiting import wait_until

from api.app import create_app
from ferry.up.embedded_valkey import running
from shared.settings import Settings
from shared.wire.client import connect

REFUSED = "Redis refuses what is asked, and waiting will not help"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Redis]:
    directory = tmp_path / "v"
    directory.mkdir()
    with running(directory) as valkey, connect(valkey.url) as redis:
        set_password(redis, "first")
        yield redis


def settings_of(server: Redis, user: str = "") -> Settings:
    return Settings(redis_url=f"unix://{user}{server.connection_pool.connection_kwargs['path']}")


def set_password(server: Redis, password: str) -> None:
    """Give bob another password, and end what he opened with the last one."""
    server.execute_command(
        "ACL", "SETUSER", "bob", "reset", "on", f">{password}", "~*", "&*", "+@all"
    )
    for kind in ("normal", "pubsub"):
        server.client_kill_filter(_type=kind, skipme=True)


def test_an_api_tells_once_why_it_refuses(server: Redis, caplog: pytest.LogCaptureFixture) -> None:
    with counting_model(settings_of(server)):
        client = create_app(settings_of(server, "bob:first@")).test_client()
        answer(client.post("/predict/fake", json=tensor(1.0)))
        caplog.set_level(logging.INFO)

        set_password(server, "second")
        for _ in range(20):
            said = refusal(client.post("/predict/fake", json=tensor(1.0)), 503, "redis_unavailable")
            assert "invalid username-password pair" in said
        told = [each for each in caplog.records if each.name == "shared.courier.sender"]
        set_password(server, "first")
        wait_until(
            lambda: client.post("/predict/fake", json=tensor(1.0)).status_code == 200, 30, "served"
        )

    assert [each.levelname for each in told] == ["ERROR"]
    assert f"{REFUSED}: invalid username-password pair" in told[0].getMessage()


def test_a_jobs_worker_tells_once_why_it_waits(server: Redis, tmp_path: Path) -> None:
    log_file = tmp_path / "log"
    settings = settings_of(server, "bob:first@")
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "jobs"], env=os.environ | environment(settings), cwd=ROOT,
            stdout=log, stderr=log,
        )  # fmt: skip
    try:
        wait_until(lambda: server.scard("rq:workers"), 60, "it waits for jobs")
        set_password(server, "second")
        wait_until(lambda: REFUSED in log_file.read_text(), 30, "it says so")
        before = denied(server)
        wait_until(lambda: denied(server) > before + 2, 30, "it has tried again")
        told = log_file.read_text().splitlines()
        set_password(server, "first")
        wait_until(lambda: "Redis is back" in log_file.read_text(), 60, "it goes on")
    finally:
        process.terminate()
        process.wait(timeout=60)

    assert sum("invalid username-password pair" in line for line in told) == 1, told
    assert not any("could not connect" in line for line in told)


def denied(server: Redis) -> int:
    return int(server.info("stats")["acl_access_denied_auth"])
