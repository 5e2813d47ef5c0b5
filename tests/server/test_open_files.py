"""More connections than files may be open neither end an API process nor keep others waiting."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from ferry_processes import ROOT, environment, free_port
from waiting import wait_until

from shared.settings import Settings

HEALTH = b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
CONNECTIONS = 300
"""Above the limits here."""
LIMIT = 256


def status(connection: socket.socket) -> bytes:
    connection.settimeout(20)
    connection.sendall(HEALTH)
    return connection.recv(1024).partition(b"\r\n")[0]


@pytest.mark.parametrize("hard", [4096, LIMIT])
def test_an_api_process_outlives_more_connections_than_files(
    settings: Settings, tmp_path: Path, hard: int
) -> None:
    port = free_port()
    script = (
        f"import os, resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, ({LIMIT}, {hard}));"
        "os.execv(sys.executable, [sys.executable, '-m', 'gunicorn', '--config',"
        " 'gunicorn.conf.py', 'api.wsgi:app'])"
    )
    environ = environment(settings) | {"FERRY_PORT": str(port), "FERRY_API_PROCESSES": "1"}
    log = tmp_path / "log"
    with log.open("wb") as output, ExitStack() as stack:
        api = subprocess.Popen(
            [sys.executable, "-c", script],
            env=os.environ | environ,
            cwd=ROOT,
            stdout=output,
            stderr=output,
        )
        stack.callback(api.wait, 60)
        stack.callback(api.terminate)
        wait_until(lambda: answers(port), 30, "gunicorn answers")

        address = ("127.0.0.1", port)
        idle = [stack.enter_context(socket.create_connection(address)) for _ in range(CONNECTIONS)]
        if hard > LIMIT:
            assert status(idle[-1]) == b"HTTP/1.1 200 OK", "all of them are served"
        # Of idle ones the longest leave for those that come while the process is full.
        first = slice(2 * CONNECTIONS // 3) if hard > LIMIT else slice(-CONNECTIONS // 3, None)
        for each in idle[first]:
            assert status(each) == b"HTTP/1.1 200 OK"
            each.close()
        assert answers(port), "who came last is served once others have left"

    text = log.read_text()
    assert "Too many open files" not in text
    assert ("FERRY_API_CONNECTIONS=1000: 128, for a process may open few" in text) == (
        hard == LIMIT
    )


def answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port)) as connection:
            return status(connection) == b"HTTP/1.1 200 OK"
    except OSError:
        return False


def test_the_tests_own_limit_allows_them() -> None:
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > CONNECTIONS + 100
