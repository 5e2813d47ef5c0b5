"""What was accepted with 202 is answered whoever dies: real gunicorn, real worker, kill -9."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from http.client import HTTPConnection
from typing import Any, NamedTuple

import pytest
from ferry_processes import free_port, running_gunicorn, running_worker
from scripted_models import Slow, add_model
from waiting import wait_until
from worker_processes import Served, descendants, runs, seen

from shared.settings import Settings

A_WHILE = 100.0
"""Matrix products that take some tenths of a second."""
COUNT = 8


class Ferry(NamedTuple):
    """A whole Ferry over one slow model, with two API processes."""

    port: int
    master: int
    slow: Served


@pytest.fixture(scope="module")
def ferry(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ferry]:
    models = tmp_path_factory.mktemp("models")
    add_model(models, Slow())
    settings = Settings(redis_url=redis_url, key_prefix="survives", models=str(models))
    settings = replace(settings, port=free_port(), cpu_threads=1, api_processes=2)
    with ExitStack() as stack:
        stack.enter_context(running_worker(settings))
        api = stack.enter_context(running_gunicorn(settings))
        yield Ferry(settings.port, api.pid, stack.enter_context(seen(settings, "slow")))


def exchange(port: int, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, path, body and json.dumps(body), {"Prefer": "respond-async"})
    response = connection.getresponse()
    answer = json.loads(response.read())
    connection.close()
    return response.status, answer


def accept(ferry: Ferry) -> list[str]:
    """Have requests accepted; return where their answers will be."""
    locations = []
    for number in range(COUNT):
        row = {"input_tensor": [[A_WHILE, float(number)]]}
        status, body = exchange(ferry.port, "POST", "/predict/slow", row)
        assert status == 202
        locations.append(body["location"])
    return locations


def all_answered(ferry: Ferry, locations: list[str]) -> list[int]:
    """See that each has its own answer; return how many attempts each took."""
    attempts = []
    for number, location in enumerate(locations):
        status, body = exchange(ferry.port, "GET", location + "?wait=60")
        assert (status, body.get("prediction")) == (200, [[2 * A_WHILE, 2.0 * number]])
        attempts.append(body["timings"]["attempts"])
    return attempts


def test_requests_accepted_by_a_process_that_is_killed_are_answered(ferry: Ferry) -> None:
    locations = accept(ferry)
    processes = descendants(ferry.master)

    for pid in processes:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not any(map(runs, processes)), 10, "they are dead")

    wait_until(lambda: any(map(runs, descendants(ferry.master))), 20, "others are started")
    assert all_answered(ferry, locations) == [1] * COUNT


def test_requests_accepted_before_the_worker_is_killed_are_answered(ferry: Ferry) -> None:
    locations = accept(ferry)

    wait_until(
        lambda: ferry.slow.kill_if_it_holds_work(ferry.slow.holder()), 10, "one is killed at work"
    )

    assert sorted(all_answered(ferry, locations)) == [1] * (COUNT - 1) + [2]
