"""What `ferry up` says of the API and of each model while they come up, one by one."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ferry.up.readiness import FIRST_COMPLAINT_SECONDS, Announcer
from shared.settings import Settings

READY = {"name": "good", "version": "1", "state": "READY", "reason": ""}
BROKEN = {"name": "broken", "version": "1", "state": "UNAVAILABLE", "reason": "no such file"}
LOADING = {"name": "slow", "version": "1", "state": "LOADING", "reason": ""}
UNLOADED = {"name": "other", "state": "UNAVAILABLE", "reason": "unloaded"}


class Console:
    """Keeps lines, and stops at the first one that holds `last`."""

    def __init__(self, last: str) -> None:
        self.lines: list[str] = []
        self.stopping = False
        self._last = last

    def say(self, line: str) -> None:
        self.lines.append(line)
        self.stopping = self._last in line


@contextmanager
def api(index: Callable[[], list[dict[str, str]]], ready: Callable[[], bool]) -> Iterator[int]:
    """Serve health and index as the functions say, on the port that is yielded."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer(200 if self.path.endswith("live") or ready() else 400, {})

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.answer(200, index())

        def answer(self, status: int, body: object) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    (tmp_path / "good" / "1").mkdir(parents=True)
    return tmp_path


def announced(port: int, repository: Path, last: str, start: float | None = None) -> list[str]:
    console = Console(last)
    settings = Settings(port=port, models=str(repository))
    Announcer(settings, console, time.monotonic() if start is None else start).run()
    return console.lines


def test_a_broken_model_keeps_neither_addresses_nor_the_others_from_being_said(repository):
    with api(lambda: [BROKEN, READY], lambda: False) as port:
        lines = announced(port, repository, "POST")

    assert lines == [
        f"API        http://127.0.0.1:{port}/v2",
        f"pages      http://127.0.0.1:{port}/",
        "gRPC       127.0.0.1:8001",
        "dashboard  http://127.0.0.1:9181",
        "broken     NOT READY: no such file",
        f"good       http://127.0.0.1:{port}/v2/models/good  POST http://127.0.0.1:{port}/predict/good",
    ]


def test_each_model_is_said_when_its_turn_comes_and_only_once(repository):
    looks = iter([[LOADING], [LOADING, READY], [LOADING, READY]])
    slow = {**LOADING, "state": "READY"}
    with api(lambda: next(looks, [slow, READY]), lambda: next(looks, None) is None) as port:
        lines = announced(port, repository, "ready in")

    assert [line.split()[0] for line in lines[4:]] == ["good", "slow", "ready"]


def test_models_that_nobody_asked_for_are_named_at_the_end(repository):
    with api(lambda: [UNLOADED, READY], lambda: True) as port:
        lines = announced(port, repository, "ready in")

    assert lines[-1].endswith(" s; not loaded: other")


def test_an_empty_repository_is_said(tmp_path):
    with api(list, lambda: True) as port:
        lines = announced(port, tmp_path, "ready in")

    assert f"no models  {tmp_path} holds none yet: `ferry add FILE` puts one in" in lines[4]


def test_models_that_keep_it_waiting_are_named(repository):
    names = [{**LOADING, "name": f"m{number:02}"} for number in range(10)]
    with api(lambda: names, lambda: False) as port:
        start = time.monotonic() - FIRST_COMPLAINT_SECONDS - 5
        lines = announced(port, repository, "still waiting", start)

    named = "m00, m01, m02, m03, m04, m05, m06, m07 and 2 more"
    assert lines[-1] == f"not ready after 20 s: models not ready: {named}; still waiting"


def test_an_api_that_does_not_come_is_said(repository):
    start = time.monotonic() - FIRST_COMPLAINT_SECONDS - 5

    lines = announced(9, repository, "still waiting", start)

    expected = "the API does not answer at http://127.0.0.1:9; still waiting"
    assert lines == [f"not ready after 20 s: {expected}"]
