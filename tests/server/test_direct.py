"""What is answered without Flask is answered as Flask would answer it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from flask import Flask
from werkzeug.test import Client, TestResponse

from api.payloads.json_arrays import STRUCT_CODES, small_numbers, to_array
from api.server.body import BoundedReads
from api.server.compression import Compressed
from api.server.direct import DirectInference
from shared.datatypes import NUMPY_TYPES
from shared.errors import BadRequest

ROUTE = "/v2/models/tiny/infer"
TENSOR: dict[str, Any] = {
    "name": "INPUT__0",
    "shape": [1, 16],
    "datatype": "FP32",
    "data": [0.5] * 16,
}


def direct(app: Flask) -> DirectInference:
    outermost = app.wsgi_app
    assert isinstance(outermost, BoundedReads)
    compressed = outermost._next_app
    assert isinstance(compressed, Compressed)
    middleware = compressed._next_app
    assert isinstance(middleware, DirectInference)
    return middleware


def by_flask(app: Flask, path: str, body: bytes) -> TestResponse:
    """Send the body to Flask's own route."""
    return Client(direct(app)._next_app).post(path, data=body)


def body(**changes: Any) -> bytes:
    return json.dumps({"id": "7", "inputs": [TENSOR | changes]}).encode()


def test_a_plain_request_never_reaches_flask(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct(app), "_next_app", None)

    answer = Client(app).post(ROUTE, data=body())

    assert answer.status_code == 200
    assert answer.get_json()["outputs"][0]["shape"] == [1, 3]
    assert answer.headers["Server-Timing"].startswith("queue;dur=")


def test_both_ways_give_the_same_answer(app: Flask) -> None:
    ours, flasks = Client(app).post(ROUTE, data=body()), by_flask(app, ROUTE, body())

    assert ours.mimetype == flasks.mimetype == "application/json"
    assert dict(ours.headers).keys() == dict(flasks.headers).keys()
    seen, wanted = ours.get_json(), flasks.get_json()
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
    ours, flasks = Client(app).post(path, data=content), by_flask(app, path, content)

    assert 400 <= ours.status_code < 500
    assert (ours.status_code, ours.get_json()) == (flasks.status_code, flasks.get_json())


def test_both_ways_refuse_a_large_body_alike(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct(app), "max_body_bytes", 100)
    monkeypatch.setitem(app.config, "MAX_CONTENT_LENGTH", 100)

    ours, flasks = Client(app).post(ROUTE, data=body()), by_flask(app, ROUTE, body())

    assert ours.status_code == 413
    assert ours.get_json() == flasks.get_json()


@pytest.mark.parametrize("path", ["/v2/models/tiny/infer/", "/v2/models/%C3%A4/infer", "/v2"])
def test_what_is_not_plain_is_flasks(app: Flask, path: str) -> None:
    ours, flasks = Client(app).post(path, data=body()), by_flask(app, path, body())

    assert (ours.status_code, ours.get_json().keys()) == (
        flasks.status_code,
        flasks.get_json().keys(),
    )


def test_what_nobody_expected_is_a_bare_500(
    app: Flask, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(direct(app), "_inference", None)

    answer = Client(app).post(ROUTE, data=body())

    assert answer.status_code == 500
    assert "NoneType" not in answer.text
    assert f"POST {ROUTE}: error {answer.get_json()['error'].split()[-1]}" in caplog.text


@pytest.mark.parametrize("datatype", sorted(STRUCT_CODES))
def test_few_numbers_become_what_numpy_makes_of_them(datatype: str) -> None:
    data = [0, 1, 100] if "F" not in datatype else [0.1, -1.5, 3, 1e-40, 2**60]

    packed = small_numbers(data, datatype, len(data))

    assert packed == to_array(data, datatype, "here").tobytes()


@pytest.mark.parametrize(
    ("datatype", "data"),
    [
        ("FP32", [[1.0], [2.0]]),
        ("FP32", [1.0, "a"]),
        ("FP32", [1.0, None]),
        ("FP32", [1e39, 1.0]),
        ("FP32", [float("inf"), 1.0]),
        ("FP64", [10**400, 1.0]),
        ("INT8", [1, 128]),
        ("INT8", [1, 1.5]),
        ("UINT64", [1, -1]),
        ("INT32", [1.0, 2]),
        ("BOOL", [True, False]),
        ("BYTES", ["a", "b"]),
        ("FP32", [1.0]),
        ("FP32", {"a": 1.0, "b": 2.0}),
    ],
)
def test_what_is_not_plainly_right_is_left_to_numpy(datatype: str, data: Any) -> None:
    assert small_numbers(data, datatype, 2) is None


def test_many_numbers_are_left_to_numpy() -> None:
    assert small_numbers([1.0] * 300, "FP32", 300) is None


@pytest.mark.parametrize("datatype", ["FP32", "INT8"])
def test_numbers_out_of_range_are_refused_in_the_end(datatype: str) -> None:
    largest = float(np.finfo(np.float32).max) * 10 if datatype == "FP32" else 2**8

    assert small_numbers([largest], datatype, 1) is None
    with pytest.raises(BadRequest, match=r"too large|out of the range"):
        to_array([largest], datatype, "here")
    assert NUMPY_TYPES[datatype].itemsize in (1, 4)
