"""Clients that hang up while they wait: what they asked is taken back and not computed."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from counting_model import CountingModel, counting_model, v2
from ferry_processes import free_port, running_gunicorn
from waiting import wait_until

from shared.courier.departures import has_left
from shared.settings import Settings

INFER = "/v2/models/fake/infer"
LEAVING, STAYING = 500, 20
LEFT = 1000.0
"""What those ask who leave."""


@pytest.fixture(scope="module")
def log_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What gunicorn logs."""
    return tmp_path_factory.mktemp("gunicorn") / "log"


@pytest.fixture(scope="module")
def started(redis_url: str, log_file: Path) -> Iterator[tuple[int, CountingModel]]:
    """A port of a real gunicorn, and the slow model behind it."""
    settings = Settings(redis_url=redis_url, key_prefix="departures", port=free_port())
    with counting_model(settings, seconds=0.01) as model, running_gunicorn(settings, log_file):
        yield settings.port, model


@pytest.fixture
def serving(started: tuple[int, CountingModel]) -> tuple[int, CountingModel]:
    """The same, with nothing computed or counted yet."""
    model = started[1]
    wait_until(lambda: not model.busy(), 5, "nothing runs")
    model.computed.clear()
    model.redis.delete(model.keys.counts)
    return started


def ask(port: int, value: float) -> Any:
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", INFER, json.dumps(v2(value)))
    response = connection.getresponse()
    body = json.loads(response.read())
    assert response.status == 200, body
    connection.close()
    return body["outputs"][0]["data"]


def ask_and_leave(port: int, path: str = INFER) -> None:
    body = json.dumps(v2(LEFT))
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        client.sendall((head + body).encode())


def stays(figure: Callable[[], int], value: int, seconds: float) -> bool:
    """Tell whether a figure is this, and still is after some seconds of looking."""
    until = time.monotonic() + seconds
    while figure() == value:
        if time.monotonic() > until:
            return True
        time.sleep(0.01)
    return False


def test_a_flood_of_clients_that_leave_does_not_delay_those_who_stay(
    serving: tuple[int, CountingModel], log_file: Path
) -> None:
    port, model = serving
    model.gate.clear()
    with ThreadPoolExecutor(STAYING + 1) as pool:
        asked = [pool.submit(ask, port, 0.0)]
        wait_until(model.busy, 5, "the first is in flight")
        for value in range(1, STAYING + 1):
            for _ in range(LEAVING // STAYING):
                ask_and_leave(port)
            asked.append(pool.submit(ask, port, float(value)))

        try:
            wait_until(lambda: stays(model.depth, STAYING, 0.3), 20, "only those wait who stay")
        finally:
            model.gate.set()
        answers = [each.result() for each in asked]

    assert answers == [[2.0 * value] * 2 for value in range(STAYING + 1)]
    assert sorted(model.computed) == [float(value) for value in range(STAYING + 1)]
    # The rest of them had left before their requests were on the queue at all.
    assert LEAVING / 2 < model.count("cancelled") <= LEAVING
    assert "Traceback" not in log_file.read_text()


def test_a_client_that_leaves_a_route_of_flasks_is_noticed_as_well(
    serving: tuple[int, CountingModel], log_file: Path
) -> None:
    port, model = serving
    model.gate.clear()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(ask, port, 0.0)
        wait_until(model.busy, 5, "the first is in flight")

        ask_and_leave(port, INFER + "/")  # only the plain path goes past Flask

        wait_until(lambda: model.count("cancelled") == 1, 5, "it is noticed")
        model.gate.set()
        assert first.result() == [0.0, 0.0]
    assert model.computed == [0.0]
    assert "Traceback" not in log_file.read_text()


def test_a_client_that_leaves_while_its_request_runs_is_counted_and_answered_nowhere(
    serving: tuple[int, CountingModel],
) -> None:
    port, model = serving
    model.gate.clear()

    ask_and_leave(port)

    wait_until(lambda: model.count("cancelled") == 1, 5, "it is noticed")
    model.gate.set()
    assert ask(port, 1.0) == [2.0, 2.0]
    assert list(model.redis.scan_iter(match=model.keys.result + "*")) == []


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The server's and the client's end of one connection."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        client = socket.create_connection(listening.getsockname())
        server, _ = listening.accept()
        with client, server:
            yield server, client


def test_an_open_connection_is_not_taken_for_left(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    server, client = ends
    client.sendall(b"unread")

    assert not has_left(server)


def test_a_closed_connection_is_seen_also_behind_unread_bytes(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    server, client = ends
    client.sendall(b"unread")

    client.close()

    wait_until(lambda: has_left(server), 5, "the close is seen")
    assert server.recv(10) == b"unread"


def test_half_a_connection_counts_as_left(ends: tuple[socket.socket, socket.socket]) -> None:
    server, client = ends

    client.shutdown(socket.SHUT_WR)

    wait_until(lambda: has_left(server), 5, "the close is seen")


def test_a_connection_closed_on_our_side_counts_as_left(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    ends[0].close()

    assert has_left(ends[0])


def test_of_a_unix_socket_nothing_is_said() -> None:
    server, client = socket.socketpair()
    client.close()

    with server:
        assert not has_left(server)
