"""Sentinels or a cluster name the master: a failover under load loses nothing."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.client import HTTPConnection
from threading import Event
from typing import Any

import numpy as np
import pytest
from failing_over import PREFIX, Clustered, Watched
from ferry_processes import free_port, running_gunicorn, running_worker
from waiting import wait_until

from samples.tiny import make
from shared.settings import Settings

ROW = [0.25] * 16
CLIENTS = 4


@pytest.fixture(scope="module", params=[Watched, Clustered], ids=["sentinels", "cluster"])
def watched(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Watched | Clustered]:
    watched = request.param(tmp_path_factory.mktemp("s"))
    yield watched
    watched.stop()


@pytest.fixture(scope="module")
def port(watched: Watched | Clustered, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    models = tmp_path_factory.mktemp("models")
    make(models / "tiny")
    prefix = PREFIX if isinstance(watched, Clustered) else "ferry"
    settings = Settings(
        redis_url=watched.url, models=str(models), port=free_port(), key_prefix=prefix, jobs=False
    )
    with running_worker(settings), running_gunicorn(settings):
        yield settings.port


def ask(connection: HTTPConnection) -> tuple[int, Any]:
    """Return the status of one request and its prediction, or the code of its error."""
    connection.request("POST", "/predict/tiny", json.dumps({"input_tensor": [ROW]}))
    response = connection.getresponse()
    said = json.loads(response.read())
    found = said["prediction"] if response.status == 200 else said["code"]
    return response.status, found


def right_answers(port: int, stop: Event) -> int:
    """Ask until `stop` is set; return how many were answered, each time the same.

    Who is refused because Redis is away asks again, as Retry-After says. Anything else fails.
    """
    right, expected = 0, None
    with closing(HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        while not stop.is_set():
            status, said = ask(connection)
            if status == 503:
                assert said == "redis_unavailable"
                time.sleep(0.05)
                continue
            assert status == 200, said
            if expected is None:
                expected = pytest.approx(np.asarray(said), rel=1e-4)
            assert np.asarray(said) == expected
            right += 1
    return right


def is_served(port: int) -> bool:
    with closing(HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        return ask(connection)[0] == 200


@pytest.mark.parametrize("blow", ["fail_over", "kill_master"])
def test_a_failover_under_load_fails_nobody(
    port: int, watched: Watched | Clustered, blow: str
) -> None:
    stop = Event()
    with ThreadPoolExecutor(CLIENTS) as pool:
        asking = [pool.submit(right_answers, port, stop) for _ in range(CLIENTS)]
        try:
            wait_until(lambda: is_served(port), 30, "requests are served")
            getattr(watched, blow)()
            wait_until(lambda: is_served(port), 30, "requests are served by the new master")
            time.sleep(1.0)
        finally:
            stop.set()
        counts = [each.result(timeout=90) for each in asking]

    assert all(counts)
    with closing(HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
        connection.request("GET", "/v2/health/ready")
        assert connection.getresponse().status == 200
