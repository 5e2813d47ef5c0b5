"""Connections that were dropped on the way keep no worker from leaving the registry."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from failing_over import Servers
from ferry_processes import free_port, running_worker
from idle_proxy import IdleProxy

from samples.tiny import make
from shared.settings import Settings


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    servers, port = Servers(tmp_path), free_port()
    servers._start(port)
    yield port
    servers.stop()


def test_a_worker_whose_connections_were_dropped_leaves_the_registry(
    port: int, tmp_path: Path
) -> None:
    make(tmp_path / "models" / "tiny")
    with (
        IdleProxy(port, "reset").running() as proxy,
        Servers(tmp_path).client(port) as redis,
    ):
        url = f"redis://127.0.0.1:{proxy.port}"
        with running_worker(Settings(redis_url=url, models=str(tmp_path / "models"))):
            assert redis.hlen("ferry:reports") == redis.hlen("ferry:instances") == 1
            proxy.drop()

        assert redis.hlen("ferry:reports") == redis.hlen("ferry:instances") == 0
        assert not list(redis.scan_iter("ferry:supervisors:*"))
