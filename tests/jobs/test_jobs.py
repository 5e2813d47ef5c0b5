"""Jobs on real processes: whatever is killed, each row is answered once, in order, and right."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis
import requests
import torch
from ferry_processes import environment, free_port, running_gunicorn, running_worker
from flask.testing import FlaskClient
from jobs_worker import running_jobs_worker, start_jobs_worker
from own_valkey import OwnValkey
from scripted_models import add_model
from waiting import wait_until
from worker_processes import descendants, seen

from api.app import create_app
from ferry.cli import main
from shared.jobs.store import ENDED, JobStore
from shared.settings import Settings
from shared.wire.client import connect

ROWS, LONGER = 20_000, 60_000
KILLS = 10


class Twice(torch.nn.Module):
    """Doubles x."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2.0


class Jobs:
    """A Valkey of its own, a model served over it, and the API that jobs are asked of."""

    def __init__(self, settings: Settings, valkey: OwnValkey, place: Path) -> None:
        self.settings, self.valkey, self.place = settings, valkey, place
        self.client: FlaskClient = create_app(settings).test_client()

    def submit(self, output: str, **fields: Any) -> str:
        body = {"model": "twice", "input": "rows.csv", "output": output, **fields}
        answer = self.client.post("/jobs/predict", json=body)
        assert answer.status_code == 202, answer.json
        assert answer.headers["Location"] == f"/jobs/{answer.json['id']}"
        return str(answer.json["id"])

    def job(self, job_id: str) -> dict[str, Any]:
        found = self.client.get(f"/jobs/{job_id}")
        return {"state": "", "progress": 0.0} | found.json

    def wait(self, job_id: str, *states: str) -> dict[str, Any]:
        wanted = states or ENDED
        wait_until(lambda: self.job(job_id)["state"] in wanted, 60, f"{job_id} is {wanted}")
        return self.job(job_id)

    def goes_on(self, job_id: str) -> None:
        done = self.job(job_id)["progress"]
        wait_until(lambda: self.job(job_id)["progress"] > done, 60, "it goes on")

    def fetch(self, job_id: str) -> Any:
        with self.client.get(f"/jobs/{job_id}/result") as answer:
            answer.get_data()
            return answer

    def answers(self, name: str) -> list[dict[str, Any]]:
        lines = (self.place / "out" / name).read_text().splitlines()
        return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jobs]:
    place = tmp_path_factory.mktemp("jobs")
    for name in ("valkey", "models", "in", "out"):
        (place / name).mkdir()
    valkey = OwnValkey(place / "valkey")
    group = "instance_group [ { count: 2 kind: KIND_CPU } ]"
    add_model(place / "models", Twice(), more=group, max_batch_size=16)
    for name, count in (("rows.csv", ROWS), ("longer.csv", LONGER), ("longest.csv", 10 * ROWS)):
        write_rows(place / "in" / name, count)
    settings = Settings(
        redis_url=valkey.server.url, key_prefix="jobs", models=str(place / "models"),
        job_inputs=str(place / "in"), job_outputs=str(place / "out"),
        job_files=str(place / "files"),
    )  # fmt: skip
    with running_worker(settings):
        yield Jobs(settings, valkey, place)
    valkey.server.stop()


def write_rows(file: Path, count: int) -> None:
    with file.open("w") as stream:
        stream.write("a,b\n")
        stream.writelines(f"{number},{number + 0.5}\n" for number in range(count))


def doubled(number: int) -> dict[str, Any]:
    prediction = {"y": [2.0 * number, 2.0 * number + 1.0]}
    return {"index": number, "source": f"row {number + 1}", "prediction": prediction}


def test_a_job_s_worker_that_is_killed_ten_times_loses_and_repeats_no_row(jobs: Jobs) -> None:
    job_id, moments = jobs.submit("killed.ndjson"), random.Random(7)
    killed = 0
    while killed < KILLS and jobs.job(job_id)["state"] not in ENDED:
        process = start_jobs_worker(jobs.settings)
        jobs.goes_on(job_id)
        time.sleep(moments.uniform(0.0, 0.1))
        process.kill()
        process.wait()
        killed += 1
    with running_jobs_worker(jobs.settings):
        done = jobs.wait(job_id)

    assert killed >= 2  # the job may have ended before all of them
    assert done["state"] == "finished", done
    assert (done["progress"], done["starts"] > killed // 2) == (1.0, True)
    assert done["result"] == {"output": "killed.ndjson", "rows": ROWS, "errors": 0}
    assert jobs.answers("killed.ndjson") == [doubled(number) for number in range(ROWS)]


def test_valkey_an_instance_and_the_job_s_process_may_die_under_it(jobs: Jobs) -> None:
    job_id = jobs.submit("outage.ndjson")
    with running_jobs_worker(jobs.settings), seen(jobs.settings, "twice") as served:
        jobs.goes_on(job_id)
        os.kill(served.holder().pid, signal.SIGKILL)
        jobs.goes_on(job_id)
        jobs.valkey.kill()
        jobs.valkey.start_again()
        done = jobs.wait(job_id)
        served.wait_ready(2)

    assert done["state"] == "finished", done
    assert jobs.answers("outage.ndjson") == [doubled(number) for number in range(ROWS)]


def test_an_upload_outlives_the_api_that_took_it(jobs: Jobs, tmp_path: Path) -> None:
    write_rows(tmp_path / "upload.csv", ROWS)
    served = replace(jobs.settings, port=free_port())
    with running_jobs_worker(jobs.settings), running_gunicorn(served) as api:
        with (tmp_path / "upload.csv").open("rb") as file:
            answer = requests.post(
                f"http://127.0.0.1:{served.port}/jobs/predict", {"model": "twice"},
                files={"input": file}, timeout=60,
            )  # fmt: skip
        job_id = answer.json()["id"]
        jobs.goes_on(job_id)
        for pid in (api.pid, *descendants(api.pid)):
            os.kill(pid, signal.SIGKILL)
        assert jobs.job(job_id)["state"] == "started"
        done = jobs.wait(job_id)

    assert (answer.status_code, done["state"], done["starts"]) == (202, "finished", 1), done
    assert [json.loads(line) for line in jobs.fetch(job_id).data.splitlines()] == [
        doubled(number) for number in range(ROWS)
    ]


def test_a_cancelled_job_leaves_whole_lines_that_say_so_and_goes_on_when_asked(jobs: Jobs) -> None:
    job_id = jobs.submit("stopped.ndjson", input="longer.csv")
    with running_jobs_worker(jobs.settings):
        jobs.goes_on(job_id)
        assert jobs.client.delete(f"/jobs/{job_id}").json["state"] in {"cancelling", "cancelled"}
        assert jobs.wait(job_id)["state"] == "cancelled"

        lines = jobs.answers("stopped.ndjson.partial")
        assert lines[-1] == {"cancelled": "by request", "rows": len(lines) - 1}
        assert lines[:-1] == [doubled(number) for number in range(len(lines) - 1)]
        assert 0 < len(lines) < LONGER
        fetched = jobs.fetch(job_id)
        assert fetched.headers["Ferry-Job-State"] == "cancelled"
        assert fetched.data == (jobs.place / "out" / "stopped.ndjson.partial").read_bytes()
        assert jobs.client.delete(f"/jobs/{job_id}").json["code"] == "job_ended"

        assert command(jobs, "retry", job_id) == 0
        assert jobs.wait(job_id, "finished", "failed")["state"] == "finished"
    assert jobs.answers("stopped.ndjson") == [doubled(number) for number in range(LONGER)]
    assert not (jobs.place / "out" / "stopped.ndjson.partial").exists()


def command(jobs: Jobs, *arguments: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(jobs.settings).items():
            patch.setenv(name, value)
        return main(["jobs", *arguments])


def test_a_full_disk_is_a_reason_and_there_it_goes_on(jobs: Jobs) -> None:
    job_id = jobs.submit("full.ndjson")
    process = start_jobs_worker(jobs.settings, largest_file=200_000)
    failed = jobs.wait(job_id)
    process.kill()
    process.wait()

    assert failed["state"] == "failed"
    assert "full.ndjson.partial" in failed["error"] or "File too large" in failed["error"]
    assert failed["starts"] == 1, "a full disk is not tried again"
    with running_jobs_worker(jobs.settings):
        assert command(jobs, "retry", job_id) == 0
        assert jobs.wait(job_id, "finished", "failed")["state"] == "finished"
    assert jobs.answers("full.ndjson") == [doubled(number) for number in range(ROWS)]


def test_a_worker_that_is_stopped_gives_its_job_back(jobs: Jobs) -> None:
    job_id = jobs.submit("given-back.ndjson")
    with running_jobs_worker(jobs.settings):
        jobs.goes_on(job_id)
    assert jobs.job(job_id)["state"] == "queued"

    with running_jobs_worker(jobs.settings):
        done = jobs.wait(job_id)

    assert (done["state"], done["starts"]) == ("finished", 2)
    assert jobs.answers("given-back.ndjson") == [doubled(number) for number in range(ROWS)]


def test_a_job_that_runs_too_long_fails_with_that_reason(jobs: Jobs) -> None:
    limited = replace(jobs.settings, job_timeout_seconds=1.0)
    asked = Jobs(limited, jobs.valkey, jobs.place)
    with running_jobs_worker(limited):
        failed = asked.wait(asked.submit("long.ndjson", input="longest.csv"))

    assert failed["state"] == "failed"
    assert "longer than FERRY_JOB_TIMEOUT_SECONDS" in failed["error"]


def test_an_upload_is_answered_and_fetched(jobs: Jobs, tmp_path: Path) -> None:
    write_rows(tmp_path / "few.csv", 40)
    with running_jobs_worker(jobs.settings), (tmp_path / "few.csv").open("rb") as file:
        form = {"model": "twice", "top_k": "1", "input": (file, "../few.csv")}
        job_id = jobs.client.post("/jobs/predict", data=form).json["id"]
        jobs.wait(job_id)
        streamed = jobs.client.get(f"/jobs/{job_id}", headers={"Accept": "text/event-stream"})
        fetched = jobs.fetch(job_id)

    assert [json.loads(line) for line in fetched.data.splitlines()] == [
        doubled(number) for number in range(40)
    ]
    event = json.loads(streamed.text.partition("data: ")[2])
    assert (event["id"], event["state"], event["progress"]) == (job_id, "finished", 1.0)
    assert event["log"][-1] == "predict of twice is done"
    assert jobs.client.get("/jobs?limit=1").json["jobs"][0]["id"] == job_id


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({"input": "../models/twice/config.pbtxt"}, 400, "outside of FERRY_JOB_INPUTS"),
        ({"input": "/etc/passwd"}, 400, "outside of FERRY_JOB_INPUTS"),
        ({"input": "link.csv"}, 400, "outside of FERRY_JOB_INPUTS"),
        ({"input": "none.csv"}, 400, "'none.csv': no such file"),
        ({"input": "rows.csv", "output": "../files/x.ndjson"}, 400, "outside of FERRY_JOB_OUTPUTS"),
        ({"input": "rows.csv", "output": "link.ndjson"}, 400, "outside of FERRY_JOB_OUTPUTS"),
        ({"input": "rows.csv", "output": "x.txt"}, 400, "expected .ndjson or .parquet"),
        ({"input": "rows.csv", "top_k": "many"}, 400, "field 'top_k'"),
        ({"input": "rows.csv", "rows": 1}, 400, "no field 'rows'"),
        ({"input": "rows.csv", "model": "other"}, 404, "'other'"),
        ({"input": "rows.csv", "model": "../x"}, 400, "field 'model'"),
        ({}, 400, "a form with a file"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(
    jobs: Jobs, body: dict[str, Any], status: int, says: str
) -> None:
    for place, name, target in (
        ("in", "link.csv", "/etc/hostname"), ("out", "link.ndjson", "/tmp/made-by-a-link.ndjson")
    ):  # fmt: skip
        if not (jobs.place / place / name).is_symlink():
            (jobs.place / place / name).symlink_to(target)

    answer = jobs.client.post("/jobs/predict", json={"model": "twice", **body})

    assert (answer.status_code, says in answer.json["error"]) == (status, True), answer.json


def test_callables_are_imported_from_listed_modules_alone(jobs: Jobs) -> None:
    fields = {"model": "made", "inputs": ["x:FP32:2"], "arguments": {"command": "true"}}
    listed = replace(jobs.settings, job_modules="posixpath,scripted_models")
    client = create_app(listed).test_client()

    refused = jobs.client.post("/jobs/export", json={"original": "posixpath:join", **fields})
    assert "FERRY_JOB_MODULES" in refused.json["error"]
    with running_jobs_worker(listed):
        theirs = client.post("/jobs/export", json={"original": "posixpath:genericpath", **fields})
        job = jobs.wait(theirs.json["id"])
    assert (job["state"], job["error"]) == (
        "failed", "posixpath:genericpath: posixpath has no 'genericpath' of its own",
    )  # fmt: skip


def test_ten_thousand_ended_jobs_slow_nothing(jobs: Jobs) -> None:
    client = connect(jobs.settings.redis_url)
    store = JobStore(client, replace(jobs.settings, key_prefix="many", job_keep_count=10_000))
    with client.pipeline() as pipe:
        for number in range(10_050):
            job_id = f"{number:032x}"
            pipe.hset(f"rq:job:{job_id}", mapping={
                "ferry_kind": "predict", "status": "finished", "origin": "many",
                "created_at": "2026-11-30T00:00:00.000000Z",
            })  # fmt: skip
            pipe.zadd("many:jobs", {job_id: time.time() - 20_000 + number})
        pipe.execute()

    listed = commands(client, lambda: store.all(100))
    found = commands(client, lambda: store.find(f"{10_000:032x}"))

    assert (len(store.all(100)), store.all(1)[0]["id"]) == (100, f"{10_049:032x}")
    assert listed <= 1 + 100 + 50  # of others too
    assert found <= 1 + 5
    store.forget([f"{number:032x}" for number in range(60)])
    assert client.zcard("many:jobs") == 9_990


def commands(client: redis.Redis, act: Any) -> int:
    """Return how many commands Redis runs meanwhile, those of others that idle included."""
    before = client.info("stats")["total_commands_processed"]
    act()
    return int(client.info("stats")["total_commands_processed"] - before - 1)
