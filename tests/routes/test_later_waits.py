"""Who waits for an answer that is kept: neither for ever nor in any number."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from counting_model import CountingModel, counting_model, v2
from ferry_processes import free_port, running_gunicorn
from waiting import wait_until

from shared.settings import Settings


@pytest.fixture
def serving(
    redis_url: str, settings: Settings, tmp_path: Path
) -> Iterator[tuple[int, CountingModel]]:
    """A port of a real gunicorn that lets one request wait, and a model that stands still."""
    settings = Settings(
        redis_url=redis_url, key_prefix=settings.key_prefix, port=free_port(), max_waiting=1
    )
    with counting_model(settings) as model, running_gunicorn(settings, tmp_path / "log"):
        model.gate.clear()
        yield settings.port, model


def ask(port: int, key: str) -> socket.socket:
    """Send a request under an Idempotency-Key; return the connection, on which it waits."""
    body = json.dumps(v2(3.0))
    head = f"POST /v2/models/fake/infer HTTP/1.1\r\nHost: localhost\r\nIdempotency-Key: {key}\r\n"
    client = socket.create_connection(("127.0.0.1", port), timeout=20)
    client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
    return client


def status(client: socket.socket) -> int:
    return int(client.recv(65536).split()[1])


def test_a_client_that_leaves_ends_its_wait_and_not_its_request(
    serving: tuple[int, CountingModel],
) -> None:
    port, model = serving
    with ask(port, "left") as client:
        wait_until(model.busy, 10, "the request runs")
        client.shutdown(socket.SHUT_WR)
        assert status(client) == 499
    model.gate.set()

    with ask(port, "left") as client:
        assert status(client) == 200
    assert model.passes == 1


def test_more_than_may_wait_are_refused(serving: tuple[int, CountingModel]) -> None:
    port, model = serving
    with ask(port, "first") as first:
        wait_until(model.busy, 10, "the first runs")
        with ask(port, "second") as second:
            assert status(second) == 503
        model.gate.set()
        assert status(first) == 200
    with ask(port, "second") as second:
        assert status(second) == 200
