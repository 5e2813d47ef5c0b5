"""`ferry jobs`: what there is in a table and as JSON, and what can be done about it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from ferry_processes import environment
from redis import Redis

from ferry.cli import main
from shared.jobs.keys import JobKeys
from shared.jobs.orders import PredictJob
from shared.jobs.store import JobStore
from shared.settings import Settings
from shared.wire.client import connect

NOBODY = "0" * 32


@pytest.fixture(autouse=True)
def where(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in environment(settings).items():
        monkeypatch.setenv(variable, value)


@pytest.fixture
def redis(settings: Settings) -> Redis:
    return connect(settings.redis_url)


@pytest.fixture
def store(redis: Redis, settings: Settings) -> JobStore:
    return JobStore(redis, settings)


def submitted(store: JobStore, model: str = "iris") -> str:
    job_id = store.new_id()
    store.submit(job_id, "predict", PredictJob(model=model, input="rows.csv"))
    return job_id


def failed(store: JobStore, redis: Redis, settings: Settings, error: str) -> str:
    """Have a job fail, as its worker writes that down."""
    job_id = submitted(store)
    redis.lrem(JobKeys(settings.key_prefix).waiting, 1, job_id)
    redis.hset(f"rq:job:{job_id}", mapping={
        "status": "failed", "ferry_error": error, "ferry_starts": "2",
        "meta": json.dumps({"progress": 0.25, "step": "row 5 of 20, 0 errors"}),
        "ended_at": "2026-11-30T01:02:03.000000Z",
    })  # fmt: skip
    return job_id


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["jobs", *arguments]) == 0
    return capsys.readouterr().out


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(printed(capsys, *arguments, "--json"))
    return found


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["jobs", *arguments]) == 1
    return capsys.readouterr().err


def test_the_newest_come_first_in_the_table_and_as_json(
    store: JobStore, redis: Redis, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = failed(store, redis, settings, "no\x1b[31m room"), submitted(store, "words")

    head, *rows = printed(capsys, "list").splitlines()

    assert head.split() == [
        "id",
        "job",
        "model",
        "state",
        "progress",
        "starts",
        "submitted",
        "step",
    ]
    assert [row.split()[:5] for row in rows] == [
        [new, "predict", "words", "queued", "0.0%"], [old, "predict", "iris", "failed", "25.0%"],
    ]  # fmt: skip
    assert "\x1b" not in rows[1]
    listed = told(capsys, "list")
    assert [(job["id"], job["state"], job["progress"]) for job in listed] == [
        (new, "queued", 0.0), (old, "failed", 0.25),
    ]  # fmt: skip


def test_without_a_job_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys, "list") == "there are no jobs\n"
    assert told(capsys, "list") == []


def test_one_is_shown_with_all_that_is_known(
    store: JobStore, redis: Redis, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    job_id = failed(store, redis, settings, "two\nlines")

    shown = dict(
        line.split(None, 1)
        for line in printed(capsys, "show", job_id).splitlines()
        if " " in line.strip()
    )

    assert (shown["id"], shown["state"], shown["starts"]) == (job_id, "failed", "2")
    assert "rows.csv" in shown["order"]
    (as_json,) = told(capsys, "show", job_id)
    assert as_json == store.find(job_id)
    assert as_json["error"] == "two\nlines"


def test_the_log_is_its_last_lines(
    store: JobStore, redis: Redis, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    job_id = submitted(store)
    redis.rpush(JobKeys(settings.key_prefix).log + job_id, "it begins", "a\x1b]0;title\x07b")

    assert printed(capsys, "log", job_id).splitlines()[0] == "it begins"
    assert "\x1b" not in printed(capsys, "log", job_id)
    assert [line["line"] for line in told(capsys, "log", job_id)] == [
        "it begins",
        "a\x1b]0;title\x07b",
    ]


def test_one_that_waits_is_cancelled_and_begun_again(
    store: JobStore, redis: Redis, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    job_id = submitted(store)
    assert "has not ended" in refused(capsys, "retry", job_id)

    (cancelled,) = told(capsys, "cancel", job_id)
    assert (cancelled["id"], cancelled["state"]) == (job_id, "cancelled")
    assert redis.llen(JobKeys(settings.key_prefix).waiting) == 0
    assert "has cancelled already" in refused(capsys, "cancel", job_id)

    assert f"{job_id}  predict  iris   queued" in printed(capsys, "retry", job_id)
    assert redis.lrange(JobKeys(settings.key_prefix).waiting, 0, -1) == [job_id.encode()]


def test_of_several_those_are_done_that_can_be(
    store: JobStore, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = submitted(store), submitted(store)

    assert main(["jobs", "cancel", one, NOBODY, "../x", other, "--json"]) == 1

    said = capsys.readouterr()
    assert [job["state"] for job in json.loads(said.out)] == ["cancelled", "cancelled"]
    assert said.err.count("ferry: no job") == 2


@pytest.mark.parametrize("action", ["show", "log", "cancel", "retry"])
def test_an_unknown_job_is_an_error_in_a_sentence(
    action: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert f"no job '{NOBODY}'" in refused(capsys, action, NOBODY)
