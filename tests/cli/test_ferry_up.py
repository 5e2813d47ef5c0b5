"""`ferry up` stops everything in order and leaves nothing behind, however it ends."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from ferry_up_process import (
    ALL,
    START_SECONDS,
    STOP_SECONDS,
    FerryUp,
    starter,
    wait_until,
    wait_until_gone,
)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., FerryUp]]:
    with starter(tmp_path) as start:
        yield start


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_all_in_order_and_valkey_last(start, number):
    ferry = start(api="parent").wait_for_start()

    ferry.process.send_signal(number)

    assert ferry.end() == 0, ferry.text()
    assert set(ferry.noted("stopped")[:2]) == {"api", "grpc"}
    assert ferry.noted("stopped")[2] == "worker"
    assert set(ferry.noted("stopped")[3:]) == {"jobs", "dashboard"}


def test_under_nohup_a_hang_up_stops_nothing(start):
    ferry = start(prefix=("nohup",)).wait_for_start()

    ferry.process.send_signal(signal.SIGHUP)
    ferry.process.send_signal(signal.SIGTERM)

    assert ferry.end() == 0
    assert "SIGTERM received" in ferry.text()


def test_a_process_deaf_to_sigterm_is_killed_within_ten_seconds(start):
    deaf = dict.fromkeys(("api", "grpc", "worker", "jobs"), "stubborn")
    ferry = start(**deaf).wait_for_start()

    ferry.process.terminate()

    assert ferry.end() == 0
    assert "api is killed: it did not stop in time" in ferry.text()
    assert ferry.noted("stopped") == ["dashboard"]


def test_a_second_ctrl_c_kills_at_once(start):
    ferry = start(api="stubborn", worker="stubborn").wait_for_start()

    ferry.process.send_signal(signal.SIGINT)
    wait_until(lambda: "SIGINT received" in ferry.text(), STOP_SECONDS, ferry.text)
    ferry.process.send_signal(signal.SIGINT)

    assert ferry.end(seconds=3.0) == 0
    assert "api is killed: SIGINT came again" in ferry.text()
    assert "in time" not in ferry.text()


@pytest.mark.parametrize("name", ["api", "dashboard"])
def test_the_death_of_any_process_stops_the_rest(start, name):
    ferry = start(**{name: "parent"}).wait_for_start()

    os.kill(ferry.process_id(name), signal.SIGKILL)

    assert ferry.end() == 1
    assert set(ferry.noted("stopped")) == set(ALL) - {name}
    assert f"{name} ended (exit code -9)" in ferry.text()


def test_the_loss_of_its_output_stops_it_in_order(start):
    reader, writer = os.pipe()
    ferry = start(stdout=writer, api="chatty").wait_for_start()
    os.close(writer)

    os.close(reader)

    assert ferry.end() == 0
    assert set(ferry.noted("stopped")[:2]) == {"api", "grpc"}
    assert ferry.noted("stopped")[2] == "worker"


def test_the_death_of_valkey_stops_the_rest(start):
    ferry = start().wait_for_start()

    os.kill(int(ferry.valkey().info("server")["process_id"]), signal.SIGKILL)

    assert ferry.end() == 1
    assert "Valkey ended (exit code -9)" in ferry.text()


def test_nothing_outlives_a_ferry_up_that_was_killed(start):
    ferry = start(worker="parent").wait_for_start()
    assert any("valkey-server" in command for command in ferry.descendants())

    ferry.process.kill()

    wait_until_gone(ferry)
    assert ferry.end() == -signal.SIGKILL


def test_what_was_stored_is_there_after_a_stop_and_after_a_kill(start):
    first = start().wait_for_start()
    first.valkey().set("a", "1")
    first.process.terminate()
    assert first.end() == 0
    second = start().wait_for_start()
    second.valkey().set("b", "2")
    second.process.kill()

    third = start().wait_for_start()

    assert third.valkey().mget("a", "b") == [b"1", b"2"]


@pytest.mark.parametrize("sign", ["state/lock", "state/valkey.sock", "log-0"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_of_a_start_that_was_cut_short(start, sign, number):
    ferry = start()
    wait_until((ferry.directory / sign).exists, START_SECONDS, ferry.text)

    ferry.process.send_signal(number)

    ferry.process.wait(STOP_SECONDS)
    wait_until_gone(ferry)
    assert list(ferry.state_dir.glob("*.sock")) == []


@pytest.fixture
def short_directory() -> Iterator[Path]:
    """A directory whose path leaves room for a socket's, as the tests' own may not."""
    with TemporaryDirectory(dir="/tmp") as directory:
        yield Path(directory)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_no_socket_is_left_elsewhere(start, short_directory, number):
    elsewhere = {"FERRY_STATE_DIR": "d" * 103, "TMPDIR": str(short_directory)}
    ferry = start(elsewhere).wait_for_start()
    assert "is too long for a socket's path" in ferry.text()
    assert list(short_directory.glob("ferry-*/valkey.sock")) != []

    ferry.process.send_signal(number)

    ferry.process.wait(STOP_SECONDS)
    wait_until_gone(ferry)
    wait_until(lambda: not list(short_directory.glob("ferry-*")), STOP_SECONDS, ferry.text)
