"""The real `python -m worker`: what it survives, what it loses, how it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from ferry_processes import ROOT, environment
from ferry_processes import running_worker as running
from scripted_models import Slow, Sluggish, add_model
from waiting import wait_until
from worker_processes import Served, descendants, numbers, runs, seen

from shared.errors import ModelCrashed
from shared.settings import Settings

running_worker = partial(running, forked=False)
HEARTBEAT_SECONDS = 0.3
A_WHILE = 300.0
"""Matrix products that take some tenths of a second."""
TOO_LONG = 10_000_000.0
"""Matrix products that take minutes."""


@pytest.fixture(scope="module")
def broken_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of models good and bad; the file of the one that cannot be loaded."""
    repository = tmp_path_factory.mktemp("models")
    add_model(repository, Slow())
    add_model(repository, Sluggish(), more="instance_group [ { kind: KIND_GPU gpus: [63] } ]")
    file = add_model(repository, torch.nn.Identity())
    file.write_bytes(b"no model at all")
    return file


@pytest.fixture(scope="module")
def mixed(redis_url: str, broken_file: Path) -> Iterator[Settings]:
    """A worker over that repository, shared by the tests that leave it as it was."""
    settings = Settings(
        redis_url=redis_url,
        key_prefix="mixed",
        models=str(broken_file.parents[2]),
        heartbeat_seconds=HEARTBEAT_SECONDS,
        max_batch_seconds=2.0,
        cpu_threads=3,
    )
    with running_worker(settings, wait_ready=False), seen(settings, "slow") as slow:
        slow.wait_ready()
        yield settings


@pytest.fixture
def slow(mixed: Settings) -> Iterator[Served]:
    with seen(mixed, "slow") as slow:
        slow.wait_ready()
        yield slow


@pytest.fixture
def alone(settings: Settings, tmp_path: Path) -> Settings:
    """Settings for workers of a test's own, which serve `slow`."""
    add_model(tmp_path, Slow())
    return replace(
        settings, models=str(tmp_path), heartbeat_seconds=HEARTBEAT_SECONDS, cpu_threads=1
    )


def test_a_model_that_cannot_be_loaded_is_unready_for_a_reason_and_the_others_serve(
    slow: Served, broken_file: Path
) -> None:
    wait_until(lambda: "identity" in slow.registry.snapshot().failures, 30, "it is reported")
    snapshot = slow.registry.snapshot()

    assert str(broken_file) in snapshot.failures["identity"]
    assert "identity/1" not in snapshot.ready
    assert not snapshot.all_ready()
    assert numbers(slow.push(1.0).wait()).tolist() == [[2.0, 2.0]]


def test_a_model_that_cannot_be_loaded_is_tried_again_and_keeps_one_record(
    mixed: Settings, slow: Served
) -> None:
    with seen(mixed, "identity") as identity:
        tries: set[str] = set()

        def tried_again() -> bool:
            tries.update(record.id for record in identity.records() if record.state == "failed")
            return len(tries) >= 2

        wait_until(tried_again, 30, "it failed a second time")
        # Between taking the dead try's record out and putting the next one in there is none.
        wait_until(
            lambda: "identity" in identity.registry.snapshot().failures, 5, "its reason is told"
        )
        wait_until(lambda: len(identity.records()) == 1, 5, "one record is left")


def test_an_instance_killed_in_mid_batch_costs_no_client_an_error(slow: Served) -> None:
    asked, victim = slow.kill_in_mid_batch(A_WHILE)

    result = asked.wait()
    assert numbers(result).tolist() == [[2 * A_WHILE, 2 * A_WHILE]]
    assert result.timings.attempts >= 2  # on a slow machine the next try may last too long as well
    assert result.timings.instance != victim.id
    (successor,) = slow.wait_ready()
    assert runs(successor.pid) and successor.pid != victim.pid
    assert [record.id for record in slow.records()] == [successor.id]


def test_a_batch_that_runs_too_long_is_killed_and_counts_as_a_crash(slow: Served) -> None:
    started = time.monotonic()

    with pytest.raises(ModelCrashed, match="died 3 times"):
        slow.push(TOO_LONG).wait()

    assert time.monotonic() - started > 3 * 2.0
    slow.wait_ready()
    assert numbers(slow.push(1.0).wait()).tolist() == [[2.0, 2.0]]


def test_a_model_for_a_gpu_that_is_not_there_fails_alone_and_clearly(slow: Served) -> None:
    reason = slow.registry.snapshot().failures["sluggish"]

    assert "failed to load 'sluggish'" in reason
    assert "instance_group: gpus [63], but this machine has" in reason
    assert numbers(slow.push(1.0).wait()).tolist() == [[2.0, 2.0]]


def test_an_instance_computes_with_the_threads_it_was_told_to(slow: Served) -> None:
    slow.push(A_WHILE).wait()

    (instance,) = slow.wait_ready()
    assert len(os.listdir(f"/proc/{instance.pid}/task")) >= 3


def test_a_redis_that_lost_everything_knows_the_models_again_before_the_next_heartbeat(
    alone: Settings,
) -> None:
    rare = replace(alone, heartbeat_seconds=24.0)
    with running_worker(rare), seen(rare, "slow") as slow:
        lost = list(slow.redis.scan_iter(match=f"{rare.key_prefix}:*"))
        assert slow.redis.delete(*lost) >= 3

        wait_until(lambda: slow.registry.snapshot().all_ready(), 5, "it is registered again")


def test_sigterm_answers_what_is_in_flight_and_leaves_nothing_behind(alone: Settings) -> None:
    with running_worker(alone) as worker, seen(alone, "slow") as slow:
        family = descendants(worker.pid)
        in_flight = slow.push(A_WHILE)
        slow.wait_in_flight()

        worker.send_signal(signal.SIGTERM)

        assert worker.wait(timeout=20) == 0
        result = in_flight.wait()
        assert numbers(result).tolist() == [[2 * A_WHILE, 2 * A_WHILE]]
        assert result.timings.attempts == 1
        assert len(family) >= 2
        wait_until(lambda: not any(map(runs, family)), 5, "its processes are gone")
        assert slow.records() == [] and slow.holders() == []


def test_sigterm_does_not_wait_for_a_model_to_load(settings: Settings, tmp_path: Path) -> None:
    add_model(tmp_path, Sluggish())
    alone = replace(settings, models=str(tmp_path))
    with running_worker(alone, wait_ready=False) as worker, seen(alone, "sluggish") as sluggish:
        wait_until(lambda: any(record.pid for record in sluggish.records()), 30, "it is loading")

        worker.send_signal(signal.SIGTERM)

        assert worker.wait(timeout=15) == 0


def test_sigterm_while_redis_is_away_ends_the_worker(tmp_path: Path) -> None:
    settings = Settings(redis_url=f"unix://{tmp_path}/nobody.sock", models=str(tmp_path))
    worker = subprocess.Popen(
        [sys.executable, "-m", "worker"],
        env=os.environ | environment(settings),
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert worker.stderr is not None
    with worker.stderr as log:
        wait_until(
            lambda: "Redis fails, the supervisor tries again" in log.readline(),
            30,
            "it waits for Redis",
        )
        worker.send_signal(signal.SIGTERM)

        assert worker.wait(timeout=15) == 0
        assert "Traceback" not in log.read()


def test_what_a_killed_supervisor_held_is_taken_over_by_another(alone: Settings) -> None:
    settings = replace(alone, heartbeat_seconds=1.0)  # the survivor's must not be late
    with ExitStack() as stack:
        workers = [stack.enter_context(running_worker(settings, wait_ready=False)) for _ in "ab"]
        slow = stack.enter_context(seen(settings, "slow"))
        slow.wait_ready(2)
        asked = slow.push(8 * A_WHILE)
        held_by = slow.holder()
        victim = next(worker for worker in workers if f"-{worker.pid}-" in held_by.supervisor)
        family = descendants(victim.pid)

        victim.kill()

        wait_until(lambda: held_by.id not in slow.holders(), 10, "its work is put back")
        result = asked.wait()
        assert numbers(result).tolist() == [[16 * A_WHILE, 16 * A_WHILE]]
        assert result.timings.attempts >= 2
        assert family
        wait_until(lambda: not any(map(runs, family)), 5, "its processes are gone")
        wait_until(lambda: len(slow.records()) == 1, 5, "only the survivor is registered")
