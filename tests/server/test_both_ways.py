"""What is answered without Flask is answered as Flask would answer it."""

from __future__ import annotations

import json
import socket
from contextlib import closing
from typing import Any

import pytest
from flask import Flask
from gunicorn.config import Config
from gunicorn.http import get_parser
from raw_http import Connection, Reply, message
from werkzeug.test import Client

from api.server.fast_path import FastPath

ROUTE = "/v2/models/tiny/infer"
TENSOR: dict[str, Any] = {
    "name": "INPUT__0",
    "shape": [1, 16],
    "datatype": "FP32",
    "data": [0.5] * 16,
}
GUNICORNS = {"Server", "Date", "Connection"}
"""Headers that gunicorn adds to an answer of Flask's."""


def fast_path(app: Flask) -> FastPath:
    found = app.extensions["fast_path"]
    assert isinstance(found, FastPath)
    return found


def without_flask(app: Flask, path: str, body: bytes, parser: str = "auto") -> Reply | None:
    """Return the fast path's answer, None for what it leaves to Flask."""
    config = Config()
    config.set("http_parser", parser)
    client, server = socket.socketpair()
    with closing(client), closing(server):
        client.sendall(message(path, body))
        request = next(get_parser(config, server, ("127.0.0.1", 1)))
        if not fast_path(app).try_answer(request, server):
            return None
        return Connection(client).read()


def both(app: Flask, path: str, body: bytes) -> tuple[tuple[int, Any], tuple[int, Any]]:
    """Return status and JSON of the fast path's answer and of Flask's."""
    ours, flasks = without_flask(app, path, body), Client(app).post(path, data=body)
    assert ours is not None
    return (ours.status, json.loads(ours.body)), (flasks.status_code, flasks.get_json())


def body(**changes: Any) -> bytes:
    return json.dumps({"id": "7", "inputs": [TENSOR | changes]}).encode()


def test_a_plain_request_never_reaches_flask(app: Flask) -> None:
    answer = without_flask(app, ROUTE, body())

    assert answer is not None and answer.status == 200
    assert json.loads(answer.body)["outputs"][0]["shape"] == [1, 3]
    assert str(answer.header("Server-Timing")).startswith("queue;dur=")


@pytest.mark.parametrize("parser", ["python", "fast"])
def test_both_of_gunicorns_parsers_lead_past_flask(app: Flask, parser: str) -> None:
    if parser == "fast":
        pytest.importorskip("gunicorn_h1c", reason="it is built with a C compiler alone")

    answer = without_flask(app, ROUTE, body(), parser)

    assert answer is not None and answer.status == 200


def test_both_ways_give_the_same_answer(app: Flask) -> None:
    ours, flasks = without_flask(app, ROUTE, body()), Client(app).post(ROUTE, data=body())

    assert ours is not None
    assert ours.header("Content-Type") == flasks.mimetype == "application/json"
    assert dict(ours.headers).keys() - GUNICORNS == dict(flasks.headers).keys()
    seen, wanted = json.loads(ours.body), flasks.get_json()
    assert seen.pop("timings").keys() == wanted.pop("timings").keys()
    assert seen["outputs"][0].pop("data") == pytest.approx(wanted["outputs"][0].pop("data"))
    assert seen == wanted


@pytest.mark.parametrize(
    ("path", "content"),
    [
        (ROUTE, b""),
        (ROUTE, b"{"),
        (ROUTE, body(shape=[2, 16])),
        (ROUTE, body(data=["a"] * 16)),
        ("/v2/models/nothing/infer", body()),
        ("/v2/models/tiny/versions/9/infer", body()),
    ],
)
def test_both_ways_refuse_alike(app: Flask, path: str, content: bytes) -> None:
    ours, flasks = both(app, path, content)

    assert 400 <= ours[0] < 500
    assert ours == flasks


def test_both_ways_refuse_a_large_body_alike(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_path(app), "_max_body_bytes", 100)
    monkeypatch.setitem(app.config, "MAX_CONTENT_LENGTH", 100)

    ours, flasks = both(app, ROUTE, body())

    assert ours[0] == 413
    assert ours == flasks


@pytest.mark.parametrize(
    ("path", "status", "keys"),
    [
        (f"{ROUTE}/", 200, {"id", "model_name", "model_version", "outputs", "timings"}),
        ("/v2/models/%C3%A4/infer", 404, {"error", "code"}),
        ("/v2", 405, {"error", "code"}),
    ],
)
def test_what_is_not_plain_is_flasks(app: Flask, path: str, status: int, keys: set[str]) -> None:
    flasks = Client(app).post(path, data=body())

    assert without_flask(app, path, body()) is None
    assert (flasks.status_code, flasks.get_json().keys()) == (status, keys)


def test_what_nobody_expected_is_a_bare_500(
    app: Flask, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fast_path(app), "_inference", None)

    answer = without_flask(app, ROUTE, body())

    assert answer is not None and answer.status == 500
    assert b"NoneType" not in answer.body
    said = json.loads(answer.body)["error"].split()[-1]
    assert f"POST {ROUTE}: error {said}" in caplog.text
