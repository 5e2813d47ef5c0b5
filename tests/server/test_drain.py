"""gunicorn told to stop: what has come is answered, and nobody who asks nothing is waited for."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from subprocess import Popen

import pytest
from counting_model import CountingModel, counting_model, v2
from ferry_processes import free_port, running_gunicorn
from waiting import wait_until

from shared.settings import Settings

Serving = tuple[int, CountingModel, Popen[bytes]]


@pytest.fixture
def serving(redis_url: str, settings: Settings, tmp_path: Path) -> Iterator[Serving]:
    """A port of a real gunicorn, the model behind it, gunicorn's process."""
    settings = Settings(redis_url=redis_url, key_prefix=settings.key_prefix, port=free_port())
    with (
        counting_model(settings) as model,
        running_gunicorn(settings, tmp_path / "log") as gunicorn,
    ):
        yield settings.port, model, gunicorn


@contextmanager
def idle_connection(port: int) -> Iterator[socket.socket]:
    """Yield a connection that was answered once and is kept open."""
    with closing(HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        connection.request("GET", "/v2/health/live")
        assert connection.getresponse().read() == b'{"live":true}'
        yield connection.sock


def request() -> bytes:
    """Return an infer request as it is sent."""
    body = json.dumps(v2(3.0))
    head = "POST /v2/models/fake/infer HTTP/1.1\r\nHost: localhost\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode()


def is_answered(client: socket.socket) -> bool:
    return client.recv(65536).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("asked", [False, True])
def test_a_stop_does_not_wait_for_idle_connections(
    serving: Serving, tmp_path: Path, asked: bool
) -> None:
    """A connection that asked a model waits in a loop of our own, any other in gunicorn's."""
    port, _, gunicorn = serving
    with idle_connection(port) as client:
        if asked:
            client.sendall(request())
            assert is_answered(client)
        began = time.monotonic()
        gunicorn.terminate()
        gunicorn.wait(timeout=60)

        # gunicorn's own worker takes 31 s, until graceful_timeout.
        assert time.monotonic() - began < 15.0
        assert client.recv(4096) == b""
        assert "rror" not in (tmp_path / "log").read_text()


def test_a_request_under_way_is_answered_before_the_end(serving: Serving) -> None:
    port, model, gunicorn = serving
    model.gate.clear()
    with idle_connection(port) as idle, idle_connection(port) as asker:
        asker.sendall(request())
        wait_until(model.busy, 10, "the request runs")
        gunicorn.terminate()
        assert idle.recv(4096) == b""  # so the stop has begun
        assert gunicorn.poll() is None
        model.gate.set()

        assert is_answered(asker)
        gunicorn.wait(timeout=15)


def test_a_request_that_arrives_during_the_stop_is_answered(serving: Serving) -> None:
    port, model, gunicorn = serving
    model.gate.clear()
    with idle_connection(port) as first, idle_connection(port) as second:
        first.sendall(request())
        wait_until(model.busy, 10, "the request runs")
        gunicorn.terminate()
        wait_until(lambda: not listens(port), 10, "the stop has begun")
        second.sendall(request())
        model.gate.set()

        assert is_answered(first)
        assert is_answered(second)
        gunicorn.wait(timeout=15)


def test_a_connection_that_nobody_had_accepted_yet_is_served(serving: Serving) -> None:
    """subtle: the process stands still meanwhile, so it finds both when it goes on."""
    port, _, gunicorn = serving
    (worker,) = Path(f"/proc/{gunicorn.pid}/task/{gunicorn.pid}/children").read_text().split()
    os.kill(int(worker), signal.SIGSTOP)
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        client.sendall(request())
        os.kill(int(worker), signal.SIGTERM)
        os.kill(int(worker), signal.SIGCONT)

        assert is_answered(client)


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=60).close()
    except ConnectionRefusedError:
        return False
    return True
