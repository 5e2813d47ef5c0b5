"""Everything runs as the Redis user that docs/security.md gives, and needs all that it may."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import acl_user
import pytest
from ferry_processes import ROOT, environment, free_port
from grpc_process import grpc_client, row
from http_load import Client, load
from redis import Redis
from versioned_models import add_model, add_version
from waiting import wait_until

from ferry.cli import main
from ferry.up.embedded_valkey import running
from shared.access.api_key import SECRET
from shared.settings import Settings
from shared.wire.client import connect

COMMANDS = (
    "models list", "models load m", "models shadow m 1", "models compare m", "models shadow m off",
    "models use m 2", "workers", "queue", "dead list", "doctor", "keys list", "jobs list",
)  # fmt: skip

RARE = {
    "client|unblock",  # a wait for company is over, or its connection was lost
    "hexists",  # rq: a worker of this name was there before
    "hsetnx",  # Redis came back empty
    "lmove",  # rq: a worker that is not to wait
    "select",  # REDIS_URL names a database
    "unwatch",  # what was looked at needs no change
}


class Ferry:
    """A `ferry up` at a Valkey of its own, as the user that the docs give."""

    def __init__(self, admin: Redis, place: Path) -> None:
        acl_user.make(admin, "ferry")
        self.admin, self.place = admin, place
        socket = admin.connection_pool.connection_kwargs["path"]
        self.settings = Settings(
            redis_url=f"unix://{acl_user.NAME}:{acl_user.PASSWORD}@{socket}",
            models=str(place / "models"), state_dir=str(place / "state"), port=free_port(),
            grpc_port=free_port(), dashboard_port=free_port(), metrics_port=free_port(),
            model_control_mode="explicit", load_models="*", job_inputs=str(place),
            durable=True, heartbeat_seconds=0.5,
        )  # fmt: skip
        self.output = place / "output"
        environ = os.environ | environment(self.settings)
        command = [sys.executable, "-m", "ferry", "up"]
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=environ, stdout=output, stderr=subprocess.STDOUT
            )
        wait_until(self.is_ready, 90, "it is ready")

    def is_ready(self) -> bool:
        assert self.process.poll() is None, self.output.read_text()
        try:
            return bool(self.get("/v2/health/ready") is not None)
        except OSError:
            return False

    def get(self, path: str, port: int = 0) -> str:
        with urlopen(f"http://127.0.0.1:{port or self.settings.port}{path}", timeout=60) as said:
            return str(said.read(1 << 20), "utf-8")

    def post(self, path: str, body: Any) -> str:
        headers = {"Content-Type": "application/json"}
        url = f"http://127.0.0.1:{self.settings.port}{path}"
        with urlopen(Request(url, json.dumps(body).encode(), headers), timeout=60) as said:
            return str(said.read(), "utf-8")

    def job(self, job_id: str) -> dict[str, Any]:
        assert acl_user.refusals(self.admin) == []
        found: dict[str, Any] = json.loads(self.get(f"/jobs/{job_id}"))
        return found

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)


@pytest.fixture
def ferry(tmp_path: Path) -> Iterator[Ferry]:
    (tmp_path / "v").mkdir()
    add_model(tmp_path / "models", "m", 1)
    rows = "".join(f"{number},{number + 0.5}\n" for number in range(5_000))
    (tmp_path / "rows.csv").write_text("a,b\n" + rows)
    with running(tmp_path / "v") as valkey, connect(valkey.url) as admin:
        found = Ferry(admin, tmp_path)
        yield found
        found.process.kill()
        found.process.wait()


def test_the_documented_user_may_all_that_ferry_does_and_no_more(
    ferry: Ferry, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in environment(ferry.settings).items():
        monkeypatch.setenv(name, value)
    with load(ferry.settings.port), grpc_client(ferry.settings) as grpc:
        body = {"model": "m", "input": "rows.csv"}
        job_id = json.loads(ferry.post("/jobs/predict", body))["id"]
        add_version(ferry.place / "models", "m", 2)
        for words in COMMANDS:
            assert main(words.split()) == 0, capsys.readouterr()
        assert grpc.infer("m", [row(1.0, 2.0)], "2").as_numpy("y").tolist() == [[2.0, 4.0]]
        ask_otherwise(ferry)
        wait_until(lambda: ferry.job(job_id)["state"] == "finished", 60, "the job is done")
    assert len(ferry.get(f"/jobs/{job_id}/result").splitlines()) == 5_000
    ask_with_a_key(ferry, capsys)
    assert ferry.stop() == 0, ferry.output.read_text()

    assert acl_user.refusals(ferry.admin) == []
    assert acl_user.commands("ferry") - called(ferry.admin) <= RARE


def ask_otherwise(ferry: Ferry) -> None:
    """Ask for what is beside a usual prediction: later answers, pages, figures, settings."""
    with closing(Client(ferry.settings.port)) as client:
        accepted = client.ask(Prefer="respond-async")
        wait_until(lambda: client.ask("GET", accepted.location).status == 200, 30, "its answer")
        assert client.ask("DELETE", accepted.location).status == 409
        assert client.ask(Idempotency_Key="once").status == 200
    for path in ("/v2/models/m/stats", "/metrics", "/ops", "/ops/dead", "/jobs"):
        ferry.get(path)
    for path in ("queues", "workers", "jobs/ferry/finished/10/asc/1"):
        ferry.get(f"/0/data/{path}.json", ferry.settings.dashboard_port)
    ferry.post("/v2/repository/index", {})
    ferry.post("/v2/logging", {"log_verbose_level": 0})
    ferry.post("/v2/trace/setting", {"trace_level": ["OFF"]})


def ask_with_a_key(ferry: Ferry, capsys: pytest.CaptureFixture[str]) -> None:
    """Make a key with limits, ask with it, and revoke it."""
    assert main(["keys", "add", "app", "--rate", "100/s", "--concurrency", "2"]) == 0
    said = capsys.readouterr().out
    found = SECRET.search(said)
    assert found is not None, said
    with closing(Client(ferry.settings.port)) as client:
        wait_until(lambda: client.ask().status == 401, 30, "keys are wanted")
        answer = client.ask(X_API_Key=found[0])
        assert answer.status == 200, answer.said
    assert main(["keys", "revoke", "app"]) == 0


def called(admin: Redis) -> set[str]:
    """Return the commands that somebody called."""
    stats = admin.info("commandstats")
    return {name.removeprefix("cmdstat_") for name in stats}
