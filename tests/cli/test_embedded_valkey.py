"""The embedded Valkey: private, durable, on a socket whose path is never too long."""

from __future__ import annotations

import os
import signal
import stat
from pathlib import Path

import pytest
import redis

from ferry.errors import CannotStart
from ferry.up import embedded_valkey
from ferry.up.embedded_valkey import running, socket_path, wait_until_answers
from ferry.up.sessions import members
from shared.socket_paths import MAX_SOCKET_PATH_BYTES


def test_it_answers_on_a_private_socket_and_no_port(tmp_path):
    with running(tmp_path) as server:
        client = redis.Redis.from_url(server.url)

        assert client.ping()
        assert client.config_get("port") == {"port": "0"}
        (limits,) = client.config_get("client-output-buffer-limit").values()
        assert limits.endswith("pubsub 268435456 67108864 60")
        assert stat.S_IMODE(server.socket.stat().st_mode) == 0o700


def test_nothing_is_left_after_the_block(tmp_path):
    with running(tmp_path) as server:
        assert members(server.process.pid) == [server.process.pid]

    assert members(server.process.pid) == []
    assert not server.socket.exists()


def test_what_was_written_survives_a_kill(tmp_path):
    with running(tmp_path) as server:
        redis.Redis.from_url(server.url).set("key", "value")
        os.kill(server.process.pid, signal.SIGKILL)
        server.process.wait()

    with running(tmp_path) as server:
        assert redis.Redis.from_url(server.url).get("key") == b"value"


def test_a_url_holds_signs_that_urls_escape(tmp_path):
    directory = tmp_path / "a b?c#d%41"
    directory.mkdir()

    with running(directory) as server:
        assert redis.Redis.from_url(server.url).ping()


def test_a_state_directory_too_deep_for_a_socket_gets_one_elsewhere(tmp_path):
    directory = tmp_path / ("d" * MAX_SOCKET_PATH_BYTES)
    directory.mkdir()

    with running(directory) as server:
        assert redis.Redis.from_url(server.url).ping()
        assert stat.S_IMODE(server.socket.parent.stat().st_mode) == 0o700

    assert not server.socket.parent.exists()
    assert (directory / "appendonlydir").is_dir()


def test_the_longest_socket_path_is_used_as_it_is():
    name = "d" * (MAX_SOCKET_PATH_BYTES - len("/" + "/valkey.sock"))

    assert len(bytes(socket_path(Path("/") / name))) == MAX_SOCKET_PATH_BYTES
    assert socket_path(Path("/") / name).parent == Path("/") / name


def test_a_server_that_cannot_start_says_why(tmp_path):
    (tmp_path / "appendonlydir").write_text("in the way")

    with (
        pytest.raises(CannotStart, match=r"Valkey ended at its start.*appendonlydir"),
        running(tmp_path),
    ):
        pass


def test_a_server_deaf_to_sigterm_is_killed(tmp_path):
    with running(tmp_path) as server:
        os.kill(server.process.pid, signal.SIGSTOP)

        server.stop(timeout_seconds=0.2)

        assert server.process.returncode == -signal.SIGKILL


def test_a_server_that_still_reads_its_data_is_waited_for(tmp_path, monkeypatch):
    with running(tmp_path) as server:
        client = SlowlyLoading()
        monkeypatch.setattr(embedded_valkey, "connect", lambda _url: client)
        monkeypatch.setattr(embedded_valkey, "ANSWER_TIMEOUT_SECONDS", 0.05)

        wait_until_answers(server)

    assert client.refusals_left == 0


class SlowlyLoading:
    refusals_left = 20

    def ping(self) -> None:
        if self.refusals_left:
            self.refusals_left -= 1
            raise redis.exceptions.BusyLoadingError

    def close(self) -> None:
        pass
