"""Requests whose heads came before are answered without parsing them again."""

from __future__ import annotations

import json
import socket
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import gevent
import pytest
from counting_model import counting_model, v2
from ferry_processes import free_port, running_gunicorn
from gunicorn.config import Config
from gunicorn.http import get_parser
from gunicorn.http.message import Request
from raw_http import connected, message
from test_usual_way import NOT_PLAIN, PLAIN

from api.app import create_app
from api.server.fast_path import FastPath
from api.server.gunicorn_worker import PromptGeventWorker
from api.server.plain_heads import MAX_HEAD_BYTES
from shared.messages import LARGE_BYTES
from shared.settings import Settings

SMALL = message("/v2/models/nothing/infer", b"{}")
LIMIT = 50_000
"""Of a body: less than what is large."""
UNKNOWN = {
    "nothing": b"",
    "half of a head": SMALL[:40],
    "another method": message("/v2/models/nothing", b"", method="GET"),
    "another route": message("/v2/models/nothing/ready", b"{}"),
    "an empty line before it": b"\r\n" + SMALL,
    "malformed": message("/v2/models/nothing/infer", b"{}", "no colon"),
    "two lengths": message(
        "/v2/models/nothing/infer", b"{}", "Content-Length: 2", "Content-Length: 3"
    ),
    "length and chunks": message(
        "/v2/models/nothing/infer", b"{}", "Content-Length: 2", "Transfer-Encoding: chunked"
    ),
    "a head that gunicorn sees end earlier": SMALL.replace(b"\r\n", b"\n") + b"\r\n\r\n",
    "a whole URL": PLAIN["absolute"],
    "long": message("/v2/models/nothing/infer", b"{}", "X-Long: " + "x" * MAX_HEAD_BYTES),
    "a body above the limit": message("/v2/models/nothing/infer", bytes(LIMIT + 1)),
    **NOT_PLAIN,
}


@pytest.fixture
def fast_path(settings: Settings) -> FastPath:
    """No model is served: the answer is that it is not known."""
    app = create_app(replace(settings, max_body_bytes=LIMIT, request_timeout_seconds=0.2))
    found = app.extensions["fast_path"]
    assert isinstance(found, FastPath)
    return found


class Server:
    """A connection's end on which one request has been parsed by gunicorn."""

    def __init__(self, trusted: str = "*") -> None:
        config = Config()
        config.set("forwarded_allow_ips", trusted)
        self.client, self.socket = socket.socketpair()
        self.client.sendall(SMALL)
        self.last: Any = next(get_parser(config, self.socket, ("127.0.0.1", 1)))
        self.last.body.read()

    def close(self) -> None:
        self.client.close()
        self.socket.close()

    def answer_to(self, fast_path: FastPath, sent: bytes) -> dict[str, Any] | None:
        """Return the JSON of the fast path's answer to what is read next, None without any."""
        taken = fast_path.try_answer_next(sent, self.last, self.socket)
        self.socket.send(b"end")
        said = self.client.recv(65536)
        assert taken is (said != b"end")
        return json.loads(said.partition(b"\r\n\r\n")[2].removesuffix(b"end")) if taken else None


@pytest.mark.parametrize("case", sorted(PLAIN.keys() - {"absolute"}))
def test_a_plain_request_is_answered_the_first_and_every_other_time(
    fast_path: FastPath, case: str
) -> None:
    with closing(Server()) as server:
        for _ in range(3):
            answer = server.answer_to(fast_path, PLAIN[case])
            assert answer is not None and answer["code"] == "unknown_model"


@pytest.mark.parametrize("case", UNKNOWN)
def test_any_other_is_left_to_gunicorn(fast_path: FastPath, case: str) -> None:
    with closing(Server()) as server:
        for _ in range(3):
            assert server.answer_to(fast_path, UNKNOWN[case]) is None
        assert server.last.unreader.take_buffered() == b""


def test_a_head_is_parsed_once(fast_path: FastPath, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed = []
    parse = Request.parse
    monkeypatch.setattr(Request, "parse", lambda *a: (parsed.append(1), parse(*a))[1])
    with closing(Server()) as server:
        before = len(parsed)
        for sent in (PLAIN["plain"], NOT_PLAIN["idempotent"]):
            for _ in range(3):
                server.answer_to(fast_path, sent)

    assert len(parsed) - before == 2


def test_a_large_body_is_left_to_gunicorn(settings: Settings) -> None:
    """It is read there without being copied."""
    fast_path = create_app(settings).extensions["fast_path"]
    with closing(Server()) as server:
        sent = message("/v2/models/nothing/infer", bytes(LARGE_BYTES + 1))
        assert server.answer_to(fast_path, sent) is None


def test_a_connection_ends_with_a_request_that_is_killed(fast_path: FastPath) -> None:
    """Nobody knows how much of its body has been read."""

    def kill() -> bool:
        raise gevent.GreenletExit

    class Worker(PromptGeventWorker):
        def __init__(self) -> None:
            self.alive, self.nr, self.max_requests = True, 0, 10
            self._fast_path = fast_path

    with pytest.raises(StopIteration):
        Worker()._answered_by(kill)


def test_the_last_request_of_a_process_says_that_it_closes(
    settings: Settings, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GUNICORN_CMD_ARGS", "--max-requests 4")
    settings = replace(settings, redis_url=redis_url, port=free_port(), api_processes=1)
    with running_gunicorn(settings), connected(settings.port) as connection:
        # The first request was whether it is there.
        said = [connection.ask(SMALL).header("Connection") for _ in range(3)]

        assert said == ["keep-alive", "keep-alive", "close"]
        assert connection.read() is None


def test_nothing_is_known_of_heads_that_depend_on_who_sent_them(fast_path: FastPath) -> None:
    with closing(Server(trusted="10.1.2.3")) as server:
        assert server.answer_to(fast_path, PLAIN["plain"]) is None


def test_what_follows_is_left_for_the_next_time(fast_path: FastPath) -> None:
    with closing(Server()) as server:
        assert server.answer_to(fast_path, SMALL + SMALL[:70]) is not None
        assert server.last.unreader.take_buffered() == SMALL[:70]


def test_a_connection_ends_where_a_body_stops_to_come(fast_path: FastPath) -> None:
    """Nobody knows where the next request would begin."""
    with closing(Server()) as server:
        assert fast_path.try_answer_next(SMALL[:-1], server.last, server.socket)
        assert server.client.recv(65536).startswith(b"HTTP/1.1 408 ")
        assert server.last.body.failed


def test_idle_connections_are_closed_and_busy_ones_kept(
    settings: Settings, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GUNICORN_CMD_ARGS", "--keep-alive 2")
    port, log = free_port(), tmp_path / "log"
    settings = replace(settings, redis_url=redis_url, port=port, api_processes=1)
    plain = message("/v2/models/fake/infer", json.dumps(v2(1.5)).encode())
    with (
        counting_model(settings),
        running_gunicorn(settings, log),
        connected(port) as idle,
        connected(port) as busy,
    ):
        began = time.monotonic()
        assert idle.ask(plain).status == idle.ask(plain).status == 200
        while time.monotonic() < began + 6:
            assert busy.ask(plain).status == 200
            time.sleep(0.5)

        idle.socket.settimeout(1)
        assert idle.read() is None
        assert busy.ask(plain).status == 200
    assert "rror" not in log.read_text()
