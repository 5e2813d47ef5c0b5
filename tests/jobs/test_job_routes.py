"""/jobs at its limits: no body, order, name or stream of it holds an API process up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from errno import ENOSPC
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from answers import refusal
from flask import Flask
from flask.testing import FlaskClient
from registered import register, report_failure, spec
from waiting import wait_until
from werkzeug.datastructures import FileStorage

from api.app import create_app
from api.pages import stream
from api.routes.flask_side import EXTENSION
from api.routes.operations import STREAMS
from api.server.body import MAX_ORDER_BYTES
from shared.access.api_key import ApiKey
from shared.access.key_store import KeysInRedis, add
from shared.errors import QueueFull
from shared.jobs.orders import LONGEST_ORDER
from shared.jobs.store import JobStore
from shared.model_spec import MAX_TOP_K, TensorSpec
from shared.settings import Settings
from shared.wire.client import connect

EDGE = {"model": "tiny", "to": "ort"}
EVENTS = {"Accept": "text/event-stream"}


@pytest.fixture
def app(settings: Settings, tmp_path: Path) -> Iterator[Flask]:
    for name in ("in", "out"):
        (tmp_path / name).mkdir()
    (tmp_path / "in" / "rows.csv").write_text("a\n1\n")
    register(settings, spec("tiny", TensorSpec(name="x", datatype="FP32", dims=(4,))))
    places = {"job_inputs": str(tmp_path / "in"), "job_outputs": str(tmp_path / "out")}
    app = create_app(replace(settings, job_files=str(tmp_path / "files"), **places))
    yield app
    app.extensions[STREAMS].close()


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


@pytest.mark.parametrize("kind", ["predict", "export", "verify", "optimise", "edge"])
def test_an_order_s_json_is_bounded_before_it_is_read(client: FlaskClient, kind: str) -> None:
    body = b'{"model":"tiny","arguments":{"a":[' + b"[]," * (MAX_ORDER_BYTES // 3) + b"[]]}}"

    refusal(client.post(f"/jobs/{kind}", data=body), 413, "payload_too_large")


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("verify", {"arguments": {"a": "x" * LONGEST_ORDER}}),
        ("verify", {"arguments": {"x" * LONGEST_ORDER: 1}}),
        ("export", {"original": "a:b", "parameters": {f"{n}": "x" * 1000 for n in range(40)}}),
    ],
)
def test_a_long_order_is_refused_and_kept_nowhere(
    client: FlaskClient, kind: str, fields: dict[str, Any]
) -> None:
    refused = client.post(f"/jobs/{kind}", json={"model": "tiny", **fields})

    assert "at most 32768 are taken" in refusal(refused, 400, "bad_request")
    assert client.get("/jobs").json == {"jobs": []}


@pytest.mark.parametrize(
    ("kind", "fields", "says"),
    [
        ("predict", {"input": "rows.csv", "output": "é" * 130 + ".ndjson"}, "field 'output'"),
        ("predict", {"input": "rows.csv", "output": "é" * 122 + ".ndjson"}, "field 'output'"),
        ("predict", {"input": "é" * 130}, "field 'input'"),
        ("predict", {"input": "rows.csv", "top_k": MAX_TOP_K + 1}, "field 'top_k'"),
        ("edge", {"to": "ort", "output": "é" * 130}, "field 'output'"),
        ("edge", {"to": "ort", "output": "../out2"}, "field 'output'"),
        ("verify", {"data": "é" * 130}, "field 'data'"),
    ],
)
def test_a_name_or_number_too_large_is_refused_at_once(
    client: FlaskClient, kind: str, fields: dict[str, Any], says: str
) -> None:
    refused = client.post(f"/jobs/{kind}", json={"model": "tiny", **fields})

    assert says in refusal(refused, 400, "bad_request")


OF_A_MODEL = [("verify", {}), ("optimise", {}), ("edge", {"to": "ort"})]


@pytest.mark.parametrize(("kind", "fields"), OF_A_MODEL)
def test_a_job_of_a_model_that_is_not_there_is_refused_at_once(
    app: Flask, settings: Settings, tmp_path: Path, kind: str, fields: dict[str, Any]
) -> None:
    def ask(models: Path, **more: Any) -> Any:
        known = app.extensions[EXTENSION].settings
        here = create_app(replace(known, models=str(models))).test_client()
        return here.post(f"/jobs/{kind}", json={**fields, **more})

    (tmp_path / "models" / "added" / "2").mkdir(parents=True)
    (tmp_path / "models" / "notes.txt").touch()
    report_failure(settings, "broken", "no config.pbtxt")
    for name in ("absent", "notes.txt"):
        for seen in (tmp_path / "models", tmp_path / "elsewhere"):  # workers report all they have
            assert f"'{name}'" in refusal(ask(seen, model=name), 404, "unknown_model")
    refused = ask(tmp_path / "models", model="added", version="1")
    assert "version 1" in refusal(refused, 404, "unknown_model")

    assert ask(tmp_path / "models", model="added", version="2").status_code == 202
    assert ask(tmp_path / "elsewhere", model="tiny", version="7").status_code == 202
    assert ask(tmp_path / "elsewhere", model="broken").status_code == 202


def test_a_version_to_compare_with_that_is_not_there_is_refused_at_once(
    app: Flask, tmp_path: Path
) -> None:
    (tmp_path / "models" / "added" / "2").mkdir(parents=True)
    here = replace(app.extensions[EXTENSION].settings, models=str(tmp_path / "models"))
    client = create_app(here).test_client()

    refused = client.post("/jobs/verify", json={"model": "added", "against": "3"})

    assert "version 3" in refusal(refused, 404, "unknown_model")


@pytest.mark.parametrize(("kind", "fields"), OF_A_MODEL)
def test_where_nobody_can_know_the_job_finds_out(
    settings: Settings, tmp_path: Path, kind: str, fields: dict[str, Any]
) -> None:
    places = {"job_inputs": str(tmp_path), "job_outputs": str(tmp_path)}
    nobody = replace(settings, models=str(tmp_path / "elsewhere"), **places)

    taken = create_app(nobody).test_client().post(f"/jobs/{kind}", json={"model": "a", **fields})

    assert taken.status_code == 202


@pytest.mark.parametrize("fields", [{}, {"output": "bundle"}, {"version": "1"}])
def test_a_bundle_without_a_place_to_write_it_is_refused_at_once(
    app: Flask, settings: Settings, fields: dict[str, str]
) -> None:
    nowhere = create_app(replace(settings, job_files=str(app.root_path))).test_client()

    refused = nowhere.post("/jobs/edge", json={**EDGE, **fields})

    assert "FERRY_JOB_OUTPUTS is not set" in refusal(refused, 400, "bad_request")


def test_an_upload_that_finds_no_room_leaves_nothing_behind(
    client: FlaskClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def upload() -> Any:
        form = {"model": "tiny", "input": (BytesIO(b"a\n1\n"), "rows.csv")}
        return client.post("/jobs/predict", data=form)

    def save(_: FileStorage, place: Path) -> None:
        place.write_bytes(b"a")
        raise OSError(ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("api.routes.jobs._save", save)
        assert "No space left" in refusal(upload(), 503, "redis_unavailable")
    with monkeypatch.context() as patch:  # it was taken by others between two looks
        patch.setattr(JobStore, "submit", lambda *_: (_ for _ in ()).throw(QueueFull("full")))
        refusal(upload(), 503, "queue_full")

    assert list((tmp_path / "files").iterdir()) == []
    assert client.get("/jobs").json == {"jobs": []}


def test_streams_of_jobs_share_the_pages_places_and_end_with_the_process(
    app: Flask, client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "MOST_STREAMS", 1)
    job = f"/jobs/{client.post('/jobs/edge', json=EDGE).json['id']}"
    opened = client.get(job, headers=EVENTS, buffered=False)
    assert refusal(client.get(job, headers=EVENTS), 503, "queue_full")
    assert refusal(client.get("/ops/stream"), 503, "queue_full")
    opened.close()

    opened = client.get(job, headers=EVENTS, buffered=False)
    events = iter(opened.response)
    assert b"queued" in next(events)
    app.extensions[STREAMS].close()

    assert list(events) == [], "it waits for no more events"
    opened.close()


def test_events_end_once_who_asked_may_ask_no_more(client: FlaskClient, app: Flask) -> None:
    settings = app.extensions[EXTENSION].settings
    job = client.post("/jobs/edge", json=EDGE).headers["Location"]
    opened = client.get(job, headers=EVENTS, buffered=False)
    events = iter(opened.response)
    assert b"queued" in next(events)

    add(
        KeysInRedis(connect(settings.redis_url), settings.key_prefix),
        ApiKey(id="a" * 10, name="first", sha256="0" * 64),
    )
    wait_until(lambda: client.get(job).status_code == 401, 30, "who has no key is refused")
    JobStore(connect(settings.redis_url), settings).cancel(job.rpartition("/")[2])

    assert list(events) == []
    opened.close()
