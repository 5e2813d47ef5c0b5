"""`ferry workers`: every instance as a table or as JSON, and a clear word without a Redis."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ferry_processes import ROOT, environment
from registered import SUPERVISOR, register

from ferry.cli import main
from ferry.commands.inspect_redis import redis_to_inspect
from ferry.commands.tables import Column, show
from ferry.up.embedded_valkey import running
from shared.registry.desired_state import ModelReport, SupervisorReport, VersionReport
from shared.registry.desired_store import DesiredStore
from shared.registry.registry import Registry
from shared.registry.snapshot import InstanceRecord
from shared.settings import Settings
from shared.socket_paths import MAX_SOCKET_PATH_BYTES
from shared.wire.client import connect

REASON = "failed to load 'tiny', gpus [63], but this machine\nhas 0 GPUs :warning:"
READY = InstanceRecord(
    id="b-1.1",
    supervisor=SUPERVISOR,
    model="digits",
    version="2",
    state="ready",
    device="cuda:1",
    host="b",
    pid=4242,
    answered_count=100,
    requests_per_second=12.34,
    last_batch_rows=8,
    last_batch_seconds=0.00191,
    row_limit=16,
)
FAILED = InstanceRecord(
    id="a-1.1",
    supervisor="dead",
    model="tiny",
    version="1",
    state="failed",
    host="a",
    reason=REASON,
)
LOADING = VersionReport(key="slow/1", state="loading")


@pytest.fixture(autouse=True)
def no_redis_url(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Leave only a state directory in which nothing runs."""
    monkeypatch.delenv("REDIS_URL", raising=False)
    monkeypatch.setenv("FERRY_STATE_DIR", str(tmp_path))


@pytest.fixture
def registry(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    """An empty registry in the Redis that the command will be told of."""
    for variable, value in environment(settings).items():
        monkeypatch.setenv(variable, value)
    yield register(settings)


@pytest.fixture
def store(settings: Settings) -> Iterator[DesiredStore]:
    """What supervisors report into, in the same Redis."""
    with connect(settings.redis_url) as redis:
        yield DesiredStore(redis, settings.key_prefix)


def test_a_table_shows_each_instance_in_a_line(
    registry: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    registry.put_instance(READY)
    registry.put_instance(FAILED)

    assert main(["workers"]) == 0

    heading, first, second = (line.rstrip() for line in capsys.readouterr().out.splitlines())
    assert heading.split("  ")[0] == "host"
    assert first.split()[:6] == ["a", "cpu", "tiny/1", "failed", "0", "0.0"]
    assert first.partition(" gone ")[2].strip() == REASON.replace("\n", " ")
    assert second.split() == [
        "b", "4242", "cuda:1", "digits/2", "ready", "8", "1.9", "12.3", "16", "lives",
    ]  # fmt: skip


def test_json_holds_all_that_is_known(
    registry: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    registry.put_instance(READY)
    registry.put_instance(FAILED)

    assert main(["workers", "--json"]) == 0

    first, second = json.loads(capsys.readouterr().out)
    assert first == FAILED.model_dump() | {"supervisor_lives": False}
    assert second == READY.model_dump() | {"supervisor_lives": True}


def test_no_instances_are_a_sentence_and_an_empty_list(
    registry: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["workers"]) == 0
    assert main(["workers", "--json"]) == 0

    assert capsys.readouterr().out == "no instances: no worker runs on this Redis\n[]\n"


@pytest.mark.parametrize("depth", [0, MAX_SOCKET_PATH_BYTES])
def test_without_a_redis_url_the_one_of_a_running_ferry_up_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, depth: int
) -> None:
    state_dir = tmp_path / ("d" * depth) / "state"
    state_dir.mkdir(parents=True)
    monkeypatch.chdir(state_dir.parent)

    with running(state_dir) as server, redis_to_inspect({"FERRY_STATE_DIR": "state"}) as found:
        settings, client = found
        client.set("key", "value")
        with connect(server.url) as embedded:
            assert embedded.get("key") == b"value"
        assert settings.redis_url == server.url


def refused(capsys: pytest.CaptureFixture[str]) -> str:
    """Run the command, which must refuse in one line; return the line."""
    assert main(["workers", "--json"]) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert captured.out == ""
    return str(line)


def test_where_no_ferry_up_runs_it_says_where_it_looked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refused(capsys) == (
        f"ferry: no Redis: REDIS_URL is not set, and no ferry up runs in {tmp_path} "
        "(FERRY_STATE_DIR)"
    )


def test_what_a_killed_ferry_up_left_is_no_redis(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with running(tmp_path) as server:
        (tmp_path / "kept").hardlink_to(server.socket)
    (tmp_path / "kept").rename(server.socket)

    assert refused(capsys).startswith(f"ferry: no Redis at {server.url}: ")


def test_a_redis_that_does_not_answer_is_named_without_its_password(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://user:secret@127.0.0.1:1/0")

    assert refused(capsys).startswith("ferry: no Redis at redis://127.0.0.1:1/0: ")


def test_a_bad_setting_ends_with_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("REDIS_URL", "http://localhost")

    assert "REDIS_URL='http://localhost'" in refused(capsys)


def test_a_cell_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    show(
        [{"a": "\x1b[2Jx\r\n[red]y"}],
        [Column("a", lambda row: row["a"])],
        as_json=False,
        nothing="",
    )

    assert "?[2Jx [red]y" in capsys.readouterr().out
    assert "\x1b" not in capsys.readouterr().out


def test_on_a_narrow_terminal_only_the_last_column_folds(
    registry: Registry, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.put_instance(FAILED)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("TERM", "dumb")  # no bold headings

    assert main(["workers"]) == 0

    heading, first, *more = capsys.readouterr().out.splitlines()
    assert heading.split("  ")[0] == "host"
    assert first.split()[:4] == ["a", "cpu", "tiny/1", "failed"]
    column = heading.index("reason")
    folded = [line[column:].strip() for line in (first, *more)]
    assert " ".join(folded) == REASON.replace("\n", " ")
    assert all(line[:column].isspace() for line in more)


def test_a_reader_that_has_enough_is_no_traceback(registry: Registry) -> None:
    ferry = subprocess.Popen(
        [sys.executable, "-m", "ferry", "workers", "--json"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert ferry.stdout is not None
    ferry.stdout.close()

    assert ferry.communicate()[1] == ""


def test_a_table_in_a_pipe_is_not_padded(capsys: pytest.CaptureFixture[str]) -> None:
    columns = (Column("name", lambda row: row["name"]), Column("reason", lambda row: row["why"]))

    show(
        [{"name": "a", "why": ""}, {"name": "b", "why": "x" * 300}], columns,
        as_json=False, nothing="", footer="not for a pipe",
    )  # fmt: skip

    assert capsys.readouterr().out.splitlines() == ["name  reason", "a", "b     " + "x" * 300]


def test_a_footer_explains_a_table_at_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    columns = (Column("name", lambda row: row["name"]),)

    show([{"name": "a"}], columns, as_json=False, nothing="", footer="name  what it is called")

    assert capsys.readouterr().out.splitlines()[-1] == "name  what it is called"


@pytest.mark.parametrize(
    ("report", "lines"),
    [
        (SupervisorReport(models={"tiny": ModelReport()}), []),
        (SupervisorReport(mode="explicit"), []),
        (SupervisorReport(), ["the repository holds no model"]),
        (SupervisorReport(complete=False), ["the repository is still being read"]),
        (
            SupervisorReport(
                models={
                    "bad": ModelReport(reason=REASON),
                    "slow": ModelReport(
                        versions={"1": VersionReport(key="slow/1", state="loading")}
                    ),
                    "tiny": ModelReport(),
                }
            ),
            [f"bad: {REASON}", "slow: still loading"],
        ),
    ],
)
def test_here_says_what_this_machines_worker_does_not_serve(
    registry: Registry,
    store: DesiredStore,
    capsys: pytest.CaptureFixture[str],
    report: SupervisorReport,
    lines: list[str],
) -> None:
    name = f"{socket.gethostname()}-41-0abc12"
    others = (f"{socket.gethostname()}-b-41-0abc12", "elsewhere-41-0abc12")
    for each in (name, *others):
        registry.beat(each, 600.0)
        store.put_report(each, report if each == name else SupervisorReport(complete=False))

    code = main(["workers", "--here"])

    assert capsys.readouterr().out == "".join(f"{line}\n" for line in lines)
    assert code == (1 if lines else 0)


def test_here_misses_a_worker_that_lives_elsewhere_or_no_more(
    registry: Registry, store: DesiredStore, capsys: pytest.CaptureFixture[str]
) -> None:
    store.put_report(f"{socket.gethostname()}-41-0abc12", SupervisorReport(mode="explicit"))
    store.put_report("elsewhere-41-0abc12", SupervisorReport(mode="explicit"))
    registry.beat("elsewhere-41-0abc12", 600.0)

    assert main(["workers", "--here"]) == 1
    assert capsys.readouterr().out == "no worker of this machine gives a sign of life\n"
