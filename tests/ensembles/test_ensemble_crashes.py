"""Processes of an ensemble die under load, its own and its steps': no request is lost."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread

import pytest
from ensemble_models import PlusOne, Slowly, add_ensemble, add_small, infer_body, x_to_y
from ferry_processes import running_worker
from flask import Flask
from waiting import wait_until
from worker_processes import Served, runs, seen

from api.app import create_app
from shared.registry.snapshot import InstanceRecord
from shared.settings import Settings

CLIENTS = 16
BLOWS = 6
SLOW = 50.0
"""So many matrix products take `slowly` some milliseconds: there is always work in flight."""


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    models = tmp_path_factory.mktemp("crashes")
    add_small(models, "slowly", Slowly())
    add_small(models, "plus_one", PlusOne())
    chain = [x_to_y("slowly", "in", "same"), x_to_y("plus_one", "same", "out")]
    add_ensemble(models, "chain", chain)
    return models


@pytest.fixture(scope="module")
def settings_of_all(redis_url: str, repository: Path) -> Settings:
    return Settings(
        redis_url=redis_url, key_prefix="ensemble-crashes", models=str(repository),
        request_timeout_seconds=30.0,
    )  # fmt: skip


@pytest.fixture(scope="module")
def app(settings_of_all: Settings) -> Iterator[Flask]:
    with running_worker(settings_of_all):
        yield create_app(settings_of_all)


class Load:
    """Clients that ask one after the other; what they were answered."""

    def __init__(self, app: Flask, stop: Event) -> None:
        self.app = app
        self.right = 0
        self.again = 0
        self.wrong: list[str] = []
        self._stop = stop

    def ask(self, client_number: int) -> None:
        client, number = self.app.test_client(), 0
        while not self._stop.is_set():
            value = SLOW + client_number + number % 7
            response = client.post("/v2/models/chain/infer", json=infer_body(value))
            answer = response.get_json()
            if response.status_code == 200 and answer["outputs"][0]["data"] == [value + 1] * 2:
                self.right += 1
                self.again += answer["timings"]["attempts"] > 1
            else:
                self.wrong.append(response.text)
            number += 1


@contextmanager
def load(app: Flask) -> Iterator[Load]:
    stop = Event()
    asked = Load(app, stop)
    clients = [Thread(target=asked.ask, args=(number,)) for number in range(CLIENTS)]
    for client in clients:
        client.start()
    try:
        yield asked
    finally:
        stop.set()
        for client in clients:
            client.join()


def kill_while_it_works(model: Served) -> None:
    """Kill an instance with work in its hands; return when another one is ready."""
    struck = list[InstanceRecord]()
    wait_until(
        lambda: struck.append(model.holder()) or model.kill_if_it_holds_work(struck[-1]),
        30,
        "one is killed in mid-batch",
    )
    victim = struck[-1]
    wait_until(lambda: not runs(victim.pid), 10, "it is dead")
    wait_until(lambda: [each for each in model.ready() if each.id != victim.id], 30, "another one")


@pytest.mark.parametrize("model", ["chain", "slowly", "plus_one"])
def test_whoever_dies_no_request_is_lost(app: Flask, settings_of_all: Settings, model: str) -> None:
    with seen(settings_of_all, model) as struck, load(app) as asked:
        for _ in range(BLOWS):
            before = asked.right
            kill_while_it_works(struck)
            wait_until(lambda so_far=before: asked.right > so_far + CLIENTS, 30, "answers go on")

    assert asked.wrong == []
    if model == "chain":
        assert asked.again >= BLOWS  # they went through the ensemble's queue once more


def test_nothing_is_left_behind(app: Flask, settings_of_all: Settings) -> None:
    with load(app) as asked:
        wait_until(lambda: asked.right > CLIENTS, 30, "answers")

    for model in ("chain", "slowly", "plus_one"):
        with seen(settings_of_all, model) as left:
            wait_until(lambda here=left: not here.holders(), 10, f"{model} holds nothing")
            assert [key for key in left.redis.scan_iter(match=left.keys.body + "*")] == []
            assert not any(left.redis.llen(key) for key in left.keys.lists)


def test_a_process_that_hangs_is_replaced_while_slow_steps_are_waited_for(
    repository: Path, settings: Settings
) -> None:
    settings = replace(settings, models=str(repository), max_batch_seconds=2.0)
    with (
        running_worker(settings),
        seen(settings, "chain") as chain,
        seen(settings, "slowly") as step,
    ):
        slow, first = step.ready()[0], chain.ready()[0]
        os.kill(slow.pid, signal.SIGSTOP)  # between batches, so nobody misses it
        client = create_app(settings).test_client()
        with load(client.application) as asked:
            wait_until(lambda: chain.redis.llen(step.keys.queue + "1"), 10, "steps wait")
            began = chain.redis.time()[0]
            wait_until(lambda: chain.redis.time()[0] > began + 3, 10, "longer than a batch may run")
            assert chain.ready()[0].id == first.id
            os.kill(first.pid, signal.SIGSTOP)
            wait_until(lambda: not runs(first.pid), 10, "it is killed")
            os.kill(slow.pid, signal.SIGCONT)
            wait_until(lambda: asked.right > CLIENTS, 30, "answers")

    assert asked.wrong == []
