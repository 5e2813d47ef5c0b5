"""What takes the fast path past WSGI, and that all else is answered right the usual way."""

from __future__ import annotations

import gzip
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from counting_model import counting_model, v2
from doubling_server import BODIES, DOUBLED, INFER, doubling_server, numbers
from ferry_processes import ROOT, free_port, running_gunicorn
from gunicorn.config import Config
from gunicorn.http import get_parser
from raw_http import Connection, connected, message
from waiting import wait_until

from api.app import create_app
from api.server.fast_path import FastPath
from shared.settings import Settings

BODY = json.dumps(BODIES[INFER]).encode()
SMALL = json.dumps(v2(1.5)).encode()
PACKED = gzip.compress(BODY)
CHUNKED = b"5\r\n%s\r\n%x\r\n%s\r\n0\r\n\r\n" % (BODY[:5], len(BODY) - 5, BODY[5:])
NOT_PLAIN = {
    "close": message(INFER, BODY, "Connection: close"),
    "HTTP/1.0": message(INFER, BODY, version="1.0"),
    "HTTP/1.0, kept": message(INFER, BODY, "Connection: keep-alive", version="1.0"),
    "chunked": message(INFER, CHUNKED, "Transfer-Encoding: chunked"),
    "compressed": message(INFER, PACKED, "Content-Encoding: gzip"),
    "idempotent": message(INFER, BODY, "Idempotency-Key: usual-way"),
    "a header twice": message(INFER, BODY, "X-Twice: 1", "X-Twice: 2"),
    "upgrade": message(INFER, BODY, "Connection: Upgrade", "Upgrade: websocket"),
    "escaped": message(INFER.replace("fake", "f%61ke"), BODY),
    "slash": message(INFER + "/", BODY),
}
CLOSING = {"close", "HTTP/1.0"}
PLAIN = {
    "plain": message(INFER, BODY),
    "query": message(INFER + "?a=b", BODY),
    "kept": message(INFER, BODY, "Connection: keep-alive"),
    "wants it compressed": message(INFER, BODY, "Accept-Encoding: gzip"),
    "wants it as it is": message(INFER, BODY, "Accept-Encoding: identity"),
    "absolute": message("http://ferry" + INFER, BODY),
}


@pytest.fixture(scope="module", params=["auto", "python"])
def port(redis_url: str, request: pytest.FixtureRequest) -> Iterator[int]:
    """A server with the compiled parser, where it is installed, and one with gunicorn's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GUNICORN_CMD_ARGS", f"--http-parser={request.param}")
        with doubling_server(redis_url, 2**20) as server:
            yield server.port


@pytest.fixture
def connection(port: int) -> Iterator[Connection]:
    with connected(port) as connection:
        yield connection


@pytest.fixture
def fast_path(settings: Settings) -> FastPath:
    found = create_app(settings).extensions["fast_path"]
    assert isinstance(found, FastPath)
    return found


class Partial(socket.socket):
    """Takes little at a time, as gevent's does when the client's buffer is full."""

    def send(self, data: Any, flags: int = 0, /) -> int:
        return super().send(data[:50], flags)


def parsed(server: socket.socket) -> Any:
    """Return what gunicorn's own parser makes of a request."""
    return next(get_parser(Config(), server, ("127.0.0.1", 1)))


def is_answered(fast_path: FastPath, sent: bytes) -> bool:
    """Ask the fast path about a request."""
    client, server = socket.socketpair()
    with closing(client), closing(server):
        client.sendall(sent)
        request = parsed(server)
        taken = fast_path.try_answer(request, server)
        server.shutdown(socket.SHUT_WR)
        assert bool(client.recv(1)) is taken
        if not taken:
            assert request.body.read() in (BODY, PACKED)
        return taken


@pytest.mark.parametrize("case", PLAIN | NOT_PLAIN)
def test_only_plain_requests_are_taken(fast_path: FastPath, case: str) -> None:
    """No model is served here: the answer is that it is not known."""
    assert is_answered(fast_path, (PLAIN | NOT_PLAIN)[case]) is (case in PLAIN)


def test_an_answer_that_is_taken_in_part_is_sent_to_its_end(fast_path: FastPath) -> None:
    client, other = socket.socketpair()
    with closing(client), Partial(fileno=other.detach()) as server:
        client.settimeout(10)
        client.sendall(PLAIN["plain"])

        assert fast_path.try_answer(parsed(server), server)
        reply = Connection(client).read()

    assert reply is not None
    assert json.loads(reply.body)["code"] == "unknown_model"


@pytest.mark.parametrize("case", PLAIN | NOT_PLAIN)
def test_every_request_is_answered(connection: Connection, case: str) -> None:
    reply = connection.ask((PLAIN | NOT_PLAIN)[case])

    assert reply.status == 200, reply
    packed = reply.header("Content-Encoding") == "gzip"
    assert packed == (case == "wants it compressed")
    body = gzip.decompress(reply.body) if packed else reply.body
    assert numbers(json.loads(body)) == DOUBLED
    assert reply.header("Connection") == ("close" if case in CLOSING else "keep-alive")
    if case in CLOSING:
        assert connection.read() is None
    else:
        assert connection.ask(message(INFER, BODY)).status == 200


def test_who_expects_it_is_told_to_continue(connection: Connection) -> None:
    whole = message(INFER, BODY, "Expect: 100-continue")
    head = whole[: -len(BODY)]

    told = connection.ask(head)
    reply = connection.ask(BODY)

    assert (told.line, told.headers) == ("HTTP/1.1 100 Continue", [])
    assert numbers(json.loads(reply.body)) == DOUBLED


def test_an_asynchronous_request_is_accepted(connection: Connection) -> None:
    reply = connection.ask(message(INFER, BODY, "Prefer: respond-async"))

    assert reply.status == 202
    assert reply.header("Location") is not None


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT"])
def test_other_methods_are_refused(connection: Connection, method: str) -> None:
    reply = connection.ask(message(INFER, b"", "Connection: close", method=method))

    assert (reply.status, reply.header("Allow")) == (405, "OPTIONS, POST")
    assert bool(reply.body) is (method != "HEAD")


def serving(settings: Settings, redis_url: str) -> Settings:
    return Settings(
        redis_url=redis_url, key_prefix=settings.key_prefix, port=free_port(), api_processes=1
    )


LOUD = """from gunicorn.glogging import Logger

class Loud(Logger):
    def access(self, *_):
        self.info("POST " + "/v2/models/fake/infer")
"""


@pytest.mark.parametrize("arguments", ["--access-logfile -", "--logger-class loud.Loud"])
def test_every_request_stands_in_a_log_of_requests(
    settings: Settings,
    redis_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: str,
) -> None:
    (tmp_path / "loud.py").write_text(LOUD)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("GUNICORN_CMD_ARGS", arguments)
    settings, log = serving(settings, redis_url), tmp_path / "log"
    with counting_model(settings), running_gunicorn(settings, log), connected(settings.port) as one:
        for _ in range(3):
            assert one.ask(message(INFER, SMALL)).status == 200

        wait_until(lambda: log.read_text().count(f"POST {INFER}") >= 3, 10, "all are in the log")


def test_without_keep_alive_every_answer_says_that_it_closes(
    settings: Settings, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GUNICORN_CMD_ARGS", "--keep-alive 0")
    settings = serving(settings, redis_url)
    with counting_model(settings), running_gunicorn(settings), connected(settings.port) as one:
        reply = one.ask(message(INFER, SMALL))

        assert (reply.status, reply.header("Connection")) == (200, "close")
        assert one.read() is None


def test_who_sends_hundreds_at_once_leaves_others_their_turns(port: int) -> None:
    many, ask = 400, b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with connected(port) as insistent, connected(port) as other:
        insistent.send(ask)
        other.send(ask)
        assert insistent.read() and other.read()
        insistent.send(ask * many)
        time.sleep(0.01)
        other.send(ask)
        assert other.read()
        answered = 0
        with suppress(BlockingIOError):
            insistent.socket.setblocking(False)
            answered = insistent.socket.recv(10_000_000).count(b"HTTP/1.1 ")

    assert answered < many / 8


def test_during_a_stop_answers_say_that_they_close(settings: Settings, redis_url: str) -> None:
    """subtle: the first request is under way, so its connection is not one of the idle ones."""
    settings, plain = serving(settings, redis_url), message(INFER, SMALL)
    with (
        counting_model(settings) as model,
        running_gunicorn(settings) as gunicorn,
        connected(settings.port) as one,
    ):
        assert one.ask(plain).header("Connection") == "keep-alive"
        model.gate.clear()
        one.send(plain)
        wait_until(lambda: model.depth() + model.busy() == 1, 10, "the first is under way")
        gunicorn.terminate()
        wait_until(lambda: refuses(settings.port), 10, "the stop has begun")
        one.send(plain)
        model.gate.set()

        first, second = one.read(), one.read()
        assert first is not None and first.status == 200
        assert second is not None
        assert (second.status, second.header("Connection")) == (200, "close")
        assert one.read() is None


def refuses(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def test_what_is_imported_before_gevent_patches_imports_nothing_else_of_ours() -> None:
    """A lock of ours that is bound before the patching made a process hang."""
    code = "import sys, api.server.gunicorn_worker; print(*sys.modules)"
    seen = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True)

    ours = {
        name for name in seen.stdout.decode().split() if name.split(".")[0] in ("api", "shared")
    }
    assert ours == {"api", "api.server", "api.server.gunicorn_worker"}
