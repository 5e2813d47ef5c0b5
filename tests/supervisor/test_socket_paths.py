"""A TMPDIR that is too long for a socket's path, or cannot be written, stops nothing."""

from __future__ import annotations

import errno
import multiprocessing
import tempfile
from pathlib import Path

import pytest
from ferry_processes import running_worker
from versioned_models import add_model

from ferry.up.embedded_valkey import running
from shared import socket_paths
from shared.errors import BadSetting
from shared.settings import Settings
from shared.socket_paths import MAX_SOCKET_PATH_BYTES, NAME_BYTES, socket_base
from shared.wire.client import connect
from worker import __main__ as worker_entry

LONGEST = MAX_SOCKET_PATH_BYTES - NAME_BYTES


@pytest.fixture
def deep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A TMPDIR of more than a socket's path can have."""
    deep = tmp_path / ("d" * MAX_SOCKET_PATH_BYTES)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("TMPDIR", str(deep))
    monkeypatch.delenv("CI", raising=False)  # ONNX Runtime is silent where it is set
    return deep


def test_a_worker_serves_with_a_long_tmpdir(settings: Settings, tmp_path: Path, deep: Path) -> None:
    add_model(tmp_path / "models", "m", 1)

    with running_worker(Settings(**{**vars(settings), "models": str(tmp_path / "models")})):
        assert list(deep.iterdir()) == [], "nor did ONNX Runtime note anything for its makers"


def test_the_embedded_valkey_answers_with_all_paths_long(deep: Path) -> None:
    with running(deep) as server:
        assert len(bytes(server.socket)) <= MAX_SOCKET_PATH_BYTES
        with connect(server.url) as client:
            assert client.ping()


def test_a_short_tmpdir_is_taken_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="f") as short:
        monkeypatch.setattr(tempfile, "tempdir", short)

        assert socket_base() == short


@pytest.mark.parametrize("usual", ["/proc/nowhere", "/tmp/" + "d" * LONGEST])
def test_what_does_not_do_is_passed_over(usual: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", usual)

    assert socket_base() in socket_paths.ELSEWHERE


def test_it_is_said_when_nothing_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/proc/nowhere")
    monkeypatch.setattr(socket_paths, "ELSEWHERE", ("/proc/no", "/proc/neither"))
    monkeypatch.setenv("TMPDIR", "/proc/nowhere")

    with pytest.raises(BadSetting, match="TMPDIR='/proc/nowhere': neither it nor /proc/no, "):
        socket_base()


def test_a_worker_without_semaphores_says_so_in_one_sentence(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def none() -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setenv("REDIS_URL", redis_url)
    monkeypatch.setattr(multiprocessing, "Lock", none)

    assert worker_entry.main() == 2
    said = capsys.readouterr().err
    assert said.startswith("worker: /dev/shm: Read-only file system; mount a file system there")
    assert said.count("\n") == 1
