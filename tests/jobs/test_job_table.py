"""Whoever can write to Redis has no code run by it: neither in the worker nor in the dashboard."""

from __future__ import annotations

import json
import os
import pickle
import re
import time
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from secrets import token_hex
from typing import Any

import orjson
import pytest
import redis
from jobs_worker import running_jobs_worker
from waiting import wait_until

from jobs.dashboard import escaped, make_dashboard
from jobs.functions import FUNCTIONS
from shared.access.api_key import ApiKey, digest, new_secret
from shared.access.key_store import KeysInRedis, add
from shared.errors import BadRequest, QueueFull, UnknownJob, UnknownRoute
from shared.jobs.orders import KINDS, read_order
from shared.jobs.places import job_folder
from shared.jobs.store import JobStore
from shared.settings import Settings
from shared.wire.client import connect

HOSTILE = '<img src=x onerror="alert(1)">'
JSON_OF_OTHERS = json.dumps(["os.mkdir", None, ["{}"], {}])


class Marker:
    """Unpickled, it makes a directory."""

    def __init__(self, place: Path) -> None:
        self._place = str(place)

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return __import__("os").mkdir, (self._place,)


@pytest.fixture
def settings(redis_url: str, tmp_path: Path) -> Settings:
    prefix = f"table-{token_hex(4)}"
    return Settings(redis_url=redis_url, key_prefix=prefix, job_files=str(tmp_path / "files"))


@pytest.fixture
def client(settings: Settings) -> Iterator[redis.Redis]:
    with connect(settings.redis_url) as client:
        yield client
        client.srem("rq:queues", f"rq:queue:{settings.key_prefix}")


def hostile_hashes(mark: Path) -> dict[str, dict[str, Any]]:
    """Return rq's hashes by name, each of which would make the directory `mark`, or worse."""
    ours = json.dumps(["ferry.predict", None, [], {}])
    made = json.dumps(["evil.call", None, [], {}])
    hook = {"url": f"file://{mark}", "job_status": "failed"}
    return {
        "function": {"data": made},
        "packed": {"data": zlib.compress(made.encode())},
        "pickled": {"data": pickle.dumps(Marker(mark))},
        "instance": {"data": json.dumps(["ferry.predict", {"x": 1}, [], {}])},
        "arguments": {"data": json.dumps(["ferry.predict", None, [1], {}])},
        "meta": {"data": ours, "meta": pickle.dumps(Marker(mark))},
        "result": {"data": ours, "result": pickle.dumps(Marker(mark))},
        "callbacks": {
            "data": ours, "success_callback_name": "evil.call",
            "failure_callback_name": "evil.call", "stopped_callback_name": "evil.call",
            "webhooks": json.dumps([hook]),
            "repeats_left": 3, "repeat_intervals": "[0]", "retries_left": 0,
            "dependency_ids": json.dumps(["other"]), "group_id": "group",
        },
        "order": {"data": ours, "ferry_order": json.dumps({"model": "../x"})},
        "upload": {
            "data": ours, "ferry_order": json.dumps({"model": "x"}),
            "ferry_upload": "/../../../etc/passwd",
        },
        "path": {"data": ours, "ferry_order": json.dumps({"model": "x", "input": "/etc/passwd"})},
    }  # fmt: skip


def test_every_kind_has_a_function_and_an_order() -> None:
    assert FUNCTIONS.keys() == KINDS.keys()
    with pytest.raises(UnknownRoute, match="no job 'shell'"):
        read_order("shell", {})


@pytest.mark.parametrize(
    ("kind", "fields", "says"),
    [
        ("predict", {}, "field 'model'"),
        ("predict", {"model": HOSTILE}, "field 'model'"),
        ("predict", {"model": "x", "version": "../1"}, "field 'version'"),
        ("export", {"model": "x", "original": "os:path.join"}, "field 'original'"),
        ("export", {"model": "x", "original": "os"}, "field 'original'"),
        ("verify", {"model": "x", "against": "os.system"}, "field 'against'"),
        ("verify", {"model": "x", "tolerances": {"other": 1}}, "field 'tolerances'"),
        ("optimise", {"model": "x", "budget_seconds": 0}, "field 'budget_seconds'"),
        ("optimise", {"model": "x", "serve": True}, "no field 'serve'"),
        ("edge", {"model": "x", "to": "exe"}, "field 'to'"),
    ],
)
def test_a_field_that_cannot_be_is_named(kind: str, fields: dict[str, Any], says: str) -> None:
    with pytest.raises(BadRequest, match=re.escape(says)):
        read_order(kind, fields)


def test_a_job_of_anybody_else_is_not_run(
    settings: Settings, client: redis.Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark, queue = tmp_path / "mark", f"rq:queue:{settings.key_prefix}"
    (tmp_path / "evil.py").write_text(f"import os\nos.mkdir({str(mark)!r})\ndef call(*_): ...\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = hostile_hashes(mark)
    ids = {name: f"{number:032x}" for number, name in enumerate(found, 1)}
    common = {"origin": settings.key_prefix, "status": "queued", "timeout": 60,
              "created_at": "2026-11-30T00:00:00.000000Z", "ferry_kind": "predict"}  # fmt: skip
    for name, fields in found.items():
        client.hset(f"rq:job:{ids[name]}", mapping=common | fields)
        client.rpush(queue, ids[name])
    client.hset("rq:job:broken", mapping=common | {"data": b"", "status": "unheard of"})
    client.rpush(queue, "broken", "missing", "a b", "/etc", b"\xff")

    def status(name: str) -> bytes | None:
        return client.hget(f"rq:job:{ids[name]}", "status")

    with running_jobs_worker(settings):
        wait_until(lambda: all(status(name) == b"failed" for name in ids), 60, "all have failed")
        wait_until(lambda: not client.llen(queue), 30, "the queue is empty")
        wait_until(lambda: not client.llen(f"{queue}:intermediate"), 30, "no odd id is kept")

    assert not mark.exists()
    errors = {name: client.hget(f"rq:job:{ids[name]}", "ferry_error").decode() for name in ids}
    for name in ("function", "packed", "pickled", "instance", "arguments"):
        assert errors[name].endswith("is none of Ferry's, and is not run")
    assert "field 'model'" in errors["order"]
    assert "its upload ends in" in errors["upload"]
    assert "FERRY_JOB_INPUTS is not set" in errors["path"]
    for name in ids:
        kept = client.xrevrange(f"rq:results:{ids[name]}", count=1)[0][1][b"exc_string"]
        assert b"Traceback" not in kept


def test_no_more_jobs_wait_than_may(settings: Settings, client: redis.Redis) -> None:
    settings = replace(settings, max_jobs=2)
    store = JobStore(client, settings)
    for _ in range(2):
        store.submit(store.new_id(), "edge", read_order("edge", {"model": "x", "to": "ort"}))

    with pytest.raises(QueueFull, match="2 jobs wait already"):
        store.submit(store.new_id(), "edge", read_order("edge", {"model": "x", "to": "ort"}))
    waiting = store.cancel(store.all(1)[0]["id"])

    assert (waiting["state"], len(store.all())) == ("cancelled", 2)
    assert 0 < client.ttl(f"rq:job:{waiting['id']}") <= settings.job_keep_seconds


def directory(place: Path, *, is_old: bool = True) -> Path:
    place.mkdir(parents=True)
    (place / "kept.txt").write_text("precious")
    if is_old:
        os.utime(place, (0, 0))
    return place


def test_no_directory_is_removed_that_an_odd_id_names(
    settings: Settings, client: redis.Redis, tmp_path: Path
) -> None:
    settings = replace(settings, job_keep_count=1)
    store, jobs = JobStore(client, settings), f"{settings.key_prefix}:jobs"
    victim, beside = directory(tmp_path / "victim"), directory(tmp_path / "files" / "beside")
    gone = directory(tmp_path / "files" / JobStore.new_id())
    odd: list[str | bytes] = [str(victim), "../victim", "beside", ".", b"\xff", "A" * 32]
    now = time.time()
    client.zadd(jobs, {each: now - 100 for each in [*odd, gone.name]})

    store.submit(store.new_id(), "edge", read_order("edge", {"model": "x", "to": "ort"}))

    assert (victim.exists(), beside.exists(), gone.exists()) == (True, True, False)
    assert client.zcard(jobs) == 1
    assert store.all() == [store.find(client.zrange(jobs, 0, -1)[0].decode())]
    for each in (str(victim), "..", "x/../y", ""):
        with pytest.raises(UnknownJob, match="32 hexadecimal digits"):
            job_folder(settings, each)


def test_only_what_jobs_left_behind_is_swept(
    settings: Settings, client: redis.Redis, tmp_path: Path
) -> None:
    store, lives = JobStore(client, settings), JobStore.new_id()
    store.submit(lives, "edge", read_order("edge", {"model": "x", "to": "ort"}))
    files = tmp_path / "files"
    kept = [directory(files / name) for name in ("precious", "f" * 31, "F" * 32, lives)]
    kept.append(directory(files / JobStore.new_id(), is_old=False))
    left = directory(files / JobStore.new_id())

    store.sweep()

    assert not left.exists()
    assert [each.name for each in kept if not (each / "kept.txt").exists()] == []


@pytest.mark.parametrize(
    "odd",
    [
        {"ferry_starts": "abc"},
        {"ferry_starts": "9" * 5000},
        {"meta": "[1]", "ferry_order": "[1]", "ferry_result": "{"},
        {"meta": '{"progress": NaN, "step": []}', "ferry_order": '{"model": 1e999}'},
        {"ferry_result": r'"\ud800"'},
        {"ferry_result": "[" * 500 + "]" * 500},
        {"ferry_result": "[" * 100_000},
        {"ferry_result": str(2**70), b"\xff": b"\xff", "status": b"\xff", "created_at": b"\xff"},
        None,
    ],
)
def test_a_record_that_anybody_wrote_hides_no_other(
    settings: Settings, client: redis.Redis, odd: dict[str | bytes, str | bytes] | None
) -> None:
    store = JobStore(client, settings)
    theirs, ours = JobStore.new_id(), JobStore.new_id()
    for each in (theirs, ours):
        store.submit(each, "edge", read_order("edge", {"model": "x", "to": "ort"}))
    if odd is None:
        client.delete(f"rq:job:{theirs}")
        client.set(f"rq:job:{theirs}", "no hash")
    else:
        client.hset(f"rq:job:{theirs}", mapping=odd)

    listed = store.all()

    assert [each["id"] for each in listed] == ([ours] if odd is None else [ours, theirs])
    assert orjson.dumps(listed)
    assert listed[0]["order"] == {"model": "x", "to": "ort"}
    client.delete(f"rq:job:{theirs}")


def test_the_dashboard_shows_no_word_of_a_client_and_unpickles_nothing(
    settings: Settings, client: redis.Redis, tmp_path: Path
) -> None:
    store, job_id = JobStore(client, settings), JobStore.new_id()
    fields = {"model": "x", "input": HOSTILE, "output": f"{HOSTILE}.ndjson"}
    store.submit(job_id, "predict", read_order("predict", fields))
    mark = tmp_path / "mark"
    theirs = {"data": JSON_OF_OTHERS, "description": HOSTILE, "origin": settings.key_prefix,
              "meta": pickle.dumps(Marker(mark)), "status": "queued"}  # fmt: skip
    client.hset("rq:job:theirs", mapping=theirs)
    client.rpush(f"rq:queue:{settings.key_prefix}", "theirs")
    worker = {"state": "busy", "current_job": "theirs", "queues": HOSTILE, "birth": ""}
    client.hset("rq:worker:one", mapping=worker)
    client.sadd("rq:workers", "rq:worker:one")

    app = make_dashboard(settings).test_client()
    shown = [
        app.get(path)
        for path in (
            f"/0/data/job/{job_id}.json", f"/0/data/jobs/{settings.key_prefix}/queued/8/asc/1.json",
            "/0/data/workers.json", "/0/data/queues.json", f"/0/view/job/{job_id}",
            "/0/view/job/theirs", "/",
        )
    ]  # fmt: skip
    assert app.get("/0/data/job/theirs.json").status_code == 500, "it is no JSON"
    client.delete("rq:worker:one", "rq:job:theirs")
    client.srem("rq:workers", "rq:worker:one")

    assert [answer.status_code for answer in shown] == [200] * len(shown)
    for answer in shown:
        assert "<img" not in answer.text
        assert "default-src 'self'" in answer.headers["Content-Security-Policy"]
    job = shown[0].json
    assert job["description"] == "predict x"
    assert json.loads(job["metadata"].replace("&#34;", '"').replace("&quot;", '"')) == {
        "progress": 0.0, "step": "waiting",
    }  # fmt: skip
    record = client.hgetall(f"rq:job:{job_id}")
    assert b"data" in record
    assert not any(b"<img" in value for name, value in record.items() if b"ferry_" not in name)
    assert not mark.exists()
    assert escaped([{"<": ("&", 1)}]) == [{"&lt;": ["&amp;", 1]}]


def test_no_foreign_name_or_page_moves_the_dashboard(settings: Settings) -> None:
    app = make_dashboard(settings).test_client()
    again = f"/requeue/{settings.key_prefix}"

    assert app.get("/", headers={"Host": "evil.example"}).status_code == 403
    assert app.get(again).status_code == 405
    assert app.post(again, headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
    assert app.post(again).status_code == 200


def test_the_dashboard_is_for_admins_where_keys_are_on(
    settings: Settings, client: redis.Redis
) -> None:
    secrets = {}
    for role in ("admin", "infer"):
        key_id, secrets[role] = new_secret()
        key = ApiKey(id=key_id, name=role, sha256=digest(secrets[role]), roles=(role,))
        add(KeysInRedis(client, settings.key_prefix), key)
    app = make_dashboard(settings).test_client()

    nobody = app.get("/")

    assert (nobody.status_code, nobody.headers["WWW-Authenticate"]) == (401, "Basic")
    statuses = [app.get("/", headers={"X-API-Key": secrets[role]}).status_code for role in secrets]
    client.delete(f"{settings.key_prefix}:keys")
    assert statuses == [200, 403]
