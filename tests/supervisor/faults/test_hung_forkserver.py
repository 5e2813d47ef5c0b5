"""A forkserver that hangs holds its supervisor for a while only, and nobody takes it for dead."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing import forkserver, get_context
from pathlib import Path
from typing import Any

import pytest
from waiting import wait_until

from shared.registry.registry import Registry
from shared.wire.client import connect
from worker.supervisor import start_guard
from worker.supervisor.registration import Registration
from worker.supervisor.start_guard import StartGuard

CONTEXT = get_context("forkserver")


def forkserver_pid() -> int:
    running: Any = forkserver
    return int(running._forkserver._forkserver_pid)


@pytest.fixture
def stopped() -> Iterator[int]:
    """A forkserver that has started a process, and stands still now."""
    first = CONTEXT.Process(target=os.getpid)
    first.start()
    first.join(60)
    pid = forkserver_pid()
    os.kill(pid, signal.SIGSTOP)
    yield pid
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


def proven(guard: StartGuard) -> StartGuard:
    """Return the guard as it is once the forkserver has started a process."""
    with guard:
        pass
    return guard


def test_a_start_by_a_forkserver_that_stands_still_fails_and_the_next_one_works(
    stopped: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start_guard, "HUNG_SECONDS", 0.2)
    beats: list[int] = []
    guard = proven(StartGuard(lambda: beats.append(1), 0.05))

    with pytest.raises((OSError, EOFError)), guard:
        CONTEXT.Process(target=os.getpid).start()

    assert len(beats) >= 3
    wait_until(lambda: starts_and_ends(guard), 60, "there is another forkserver")
    assert forkserver_pid() != stopped


def starts_and_ends(guard: StartGuard) -> bool:
    after = CONTEXT.Process(target=os.getpid)
    try:
        with guard:
            after.start()
    except (OSError, EOFError):  # it was killed just now
        return False
    after.join(60)
    return after.exitcode == 0


def test_a_forkserver_that_is_new_has_longer(stopped: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start_guard, "HUNG_SECONDS", 0.0)
    beats: list[int] = []
    guard = StartGuard(lambda: beats.append(1), 0.01)  # knows of no start by this one

    with guard:
        wait_until(lambda: len(beats) > 10, 30, "it watches")

    os.kill(stopped, 0)


def test_a_forkserver_is_not_killed_for_a_start_that_has_come_to_its_end(
    stopped: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start_guard, "HUNG_SECONDS", 0.0)
    beats: list[int] = []
    guard = StartGuard(lambda: beats.append(1) or guard.__exit__(None), 0.01)
    proven(guard)

    guard.__enter__()
    wait_until(lambda: bool(beats), 30, "it beats, and the start ends meanwhile")
    guard.__enter__()  # it has looked whether anything hangs when it beats again
    wait_until(lambda: len(beats) > 1, 30, "it beats again")

    assert os.waitpid(stopped, os.WNOHANG) == (0, 0)


def test_a_start_that_takes_long_costs_no_sign_of_life(redis_url: str, tmp_path: Path) -> None:
    registry = Registry(connect(redis_url), tmp_path.name)
    registration = Registration("us", registry, 0.2)
    guard = StartGuard(registration.renew, 0.05)
    registration._beats_to_refill = 3

    with guard:
        wait_until(lambda: registry._living(["us"]) == {"us"}, 30, "it lives")
        registry.stop_beating("us")
        wait_until(lambda: registry._living(["us"]) == {"us"}, 30, "it lives again")

    assert registration.next_beat == 0.0
    assert registration._beats_to_refill == 0
