"""What `ferry up` does and refuses before it is up."""

from __future__ import annotations

import errno
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ferry_up_process import (
    ALL,
    START_SECONDS,
    STOP_SECONDS,
    FerryUp,
    free_port,
    starter,
    wait_until,
)

from ferry.errors import CannotStart
from ferry.up.processes import read_procfile
from ferry.up.up import PROJECT_ROOT, child_environment, up
from shared.settings import Settings


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., FerryUp]]:
    with starter(tmp_path) as start:
        yield start


def test_a_second_ferry_up_on_the_same_state_is_refused(start):
    first = start().wait_for_start()

    second = start()

    assert second.process.wait(START_SECONDS) == 1
    assert f"another ferry up (process {first.process.pid}) runs in" in second.text()
    assert first.valkey().ping()


def test_with_redis_url_nothing_is_embedded(start):
    server = start().wait_for_start()
    url = f"unix://{server.state_dir}/valkey.sock"

    ferry = start({"REDIS_URL": url, "FERRY_STATE_DIR": "other"}).wait_for_start()
    ferry.process.terminate()

    assert ferry.process.wait(STOP_SECONDS) == 0
    assert [path.name for path in (ferry.directory / "other").iterdir()] == ["lock"]
    assert server.valkey().ping()


def test_an_unreachable_redis_is_named_without_its_password(start):
    port = str(free_port())

    ferry = start({"REDIS_URL": f"redis://:secret@127.0.0.1:{port}/0"})

    assert ferry.end(START_SECONDS) == 1
    assert f"REDIS_URL=redis://127.0.0.1:{port}/0: " in ferry.text()
    assert "secret" not in ferry.text()


@pytest.mark.parametrize(
    ("variable", "value"),
    [("FERRY_PORT", "http"), ("FERRY_MAX_QUEUE_SIZE", "-1"), ("FERRY_LOG_LEVEL", "LOUD")],
)
def test_a_bad_setting_stops_the_start_in_one_line(start, variable, value):
    ferry = start({variable: value})

    assert ferry.end(START_SECONDS) == 2
    assert ferry.text().startswith(f"ferry: {variable}=")
    assert value in ferry.text()
    assert ferry.text().count("\n") == 1


@pytest.mark.parametrize("variable", ["FERRY_PORT", "FERRY_GRPC_PORT", "FERRY_DASHBOARD_PORT"])
def test_a_taken_port_is_said_at_once(start, variable):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ferry = start({variable: str(port)})

        assert ferry.end(START_SECONDS) == 1
    assert f"{variable}={port}: cannot listen on 127.0.0.1: Address already in use" in ferry.text()


@pytest.mark.parametrize("name", ["file", "file/state", "/proc/state"])
def test_a_state_directory_that_cannot_be_made_is_said(start, tmp_path, name):
    (tmp_path / "file").write_text("")

    ferry = start({"FERRY_STATE_DIR": name})

    assert ferry.end(START_SECONDS) == 1
    assert ferry.text().startswith(f"ferry: FERRY_STATE_DIR={tmp_path / name}: ")
    assert ferry.text().endswith("; set it to a directory that can be written\n")


@pytest.mark.parametrize(
    ("one", "other"),
    [("PORT", "GRPC_PORT"), ("PORT", "DASHBOARD_PORT"), ("GRPC_PORT", "DASHBOARD_PORT")],
)
def test_two_servers_cannot_have_one_port(start, one, other):
    port = str(free_port())

    ferry = start({f"FERRY_{one}": port, f"FERRY_{other}": port})

    assert ferry.end(START_SECONDS) == 2
    expected = f"ferry: FERRY_{one} and FERRY_{other} are both {port}: set one to another\n"
    assert ferry.text() == expected


def test_a_host_that_is_none_is_named(start):
    ferry = start({"FERRY_HOST": "no such host"})

    assert ferry.end(START_SECONDS) == 2
    assert ferry.text().startswith("ferry: FERRY_HOST='no such host': no address of this machine: ")


def test_processes_get_absolute_paths_and_our_programs_first(start):
    ferry = start().wait_for_start()

    expected = f"worker FERRY_MODELS={ferry.directory}/models {Path(sys.executable).parent}"
    wait_until(lambda: expected in ferry.text(), START_SECONDS, ferry.text)


def test_a_repository_behind_a_link_is_left_behind_it(start, tmp_path):
    (tmp_path / "rev1").mkdir()
    (tmp_path / "models").symlink_to("rev1")

    ferry = start().wait_for_start()

    expected = f"worker FERRY_MODELS={tmp_path}/models "
    wait_until(lambda: expected in ferry.text(), START_SECONDS, ferry.text)


def test_without_semaphores_nothing_is_started(tmp_path, monkeypatch):
    def refuse():
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("multiprocessing.Lock", refuse)

    with pytest.raises(CannotStart, match="/dev/shm: Permission denied; mount a file system"):
        up({"FERRY_MODELS": str(tmp_path), "FERRY_STATE_DIR": str(tmp_path / "state")})


def test_processes_read_the_settings_that_ferry_up_has():
    settings = Settings.from_env({"FERRY_PORT": "9", "REDIS_URL": "redis://there"})

    assert Settings.from_env(child_environment(settings, {"FERRY_PORT": "8"})) == settings


def test_the_procfile_hands_its_processes_to_honcho_without_a_shell_between():
    processes = read_procfile(PROJECT_ROOT / "Procfile")

    assert list(processes) == list(ALL)
    assert all(command.startswith("exec ") for command in processes.values())


def test_it_says_where_everything_is_once_the_api_answers(start):
    port, grpc_port = str(free_port()), str(free_port())
    ports = {"FERRY_PORT": port, "FERRY_GRPC_PORT": grpc_port}
    ferry = start(ports, api="http")

    wait_until(lambda: "ready in " in ferry.text(), START_SECONDS, ferry.text)
    assert f"API        http://127.0.0.1:{port}/v2\n" in ferry.text()
    assert f"gRPC       127.0.0.1:{grpc_port}\n" in ferry.text()
