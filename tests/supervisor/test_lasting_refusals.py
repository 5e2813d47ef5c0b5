"""A worker that Redis refuses something says so once, and goes on when it is let."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from ferry_processes import running_worker
from redis import Redis
from waiting import wait_until
from worker_processes import seen

from ferry.up.embedded_valkey import running
from samples.tiny import make
from shared.settings import Settings
from shared.wire.client import connect

REFUSED = "Redis refuses what is asked, and waiting will not help"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Redis]:
    directory = tmp_path / "v"
    directory.mkdir()
    with running(directory) as valkey, connect(valkey.url) as redis:
        yield redis


def rejected(server: Redis) -> int:
    """Return how often somebody was not let."""
    found = server.info("commandstats")
    return sum(int(found[f"cmdstat_{name}"]["rejected_calls"]) for name in ("evalsha", "hset"))


def allow(server: Redis, *rules: str) -> None:
    server.execute_command("ACL", "SETUSER", "bob", "reset", "on", ">pw", "~*", "&*", *rules)


def test_a_permission_that_is_taken_away_is_told_once_by_each_process(
    server: Redis, tmp_path: Path
) -> None:
    make(tmp_path / "models" / "tiny")
    allow(server, "+@all")
    path, log_file = server.connection_pool.connection_kwargs["path"], tmp_path / "log"
    settings = Settings(redis_url=f"unix://bob:pw@{path}", models=str(tmp_path / "models"))
    with (
        running_worker(settings, log_file=log_file),
        seen(settings_of(settings, path), "tiny") as tiny,
    ):
        tiny.wait_ready()
        allow(server, "+@all", "-evalsha", "-hset")
        wait_until(lambda: log_file.read_text().count(REFUSED) >= 2, 150, "both say so")
        before = rejected(server)
        wait_until(lambda: rejected(server) > before + 1, 20, "both have tried again")
        told = [line for line in log_file.read_text().splitlines() if "permission" in line]
        allow(server, "+@all")
        wait_until(lambda: log_file.read_text().count("Redis is back") >= 2, 20, "both go on")

    assert len(told) <= 4, told  # each of the two commands of each process, once
    assert all("ERROR" in line for line in told)


def settings_of(settings: Settings, path: str) -> Settings:
    """Return the same for a user who may do everything."""
    return replace(settings, redis_url=f"unix://{path}")
