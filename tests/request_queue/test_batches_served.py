"""Batching as a real worker does it, read from the statistics that clients read."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
import torch
from answers import answer
from ferry_processes import running_worker
from flask.testing import FlaskClient
from redis import Redis
from scripted_models import Slow, write_model
from waiting import wait_until

from api.app import create_app
from shared.request_queue.keys import QueueKeys
from shared.settings import Settings
from shared.wire.client import connect

DELAY_SECONDS = 1.0
BUSY = 3000.0
"""As a value it keeps `Slow` busy for a good part of a second."""
CONFIG = """
platform: "pytorch_libtorch" max_batch_size: 8
input [ { name: "x" data_type: TYPE_FP32 dims: [-1] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [-1] } ]
"""
BATCHING = {
    "waiting": "max_queue_delay_microseconds: 1000000",
    "preferring": "max_queue_delay_microseconds: 1000000 preferred_batch_size: [2, 4]",
    "greedy": "",
}


@pytest.fixture(scope="module")
def serving(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    models = tmp_path_factory.mktemp("models")
    for name, batching in BATCHING.items():
        add(models, name, batching, torch.nn.Identity())
    for name, flag in (("ordered", "preserve_ordering: true"), ("unordered", "")):
        groups = "instance_group [ { kind: KIND_CPU count: 2 } ]"
        add(models, name, flag, Slow(), "max_batch_size: 1", groups)
    settings = Settings(redis_url=redis_url, key_prefix="batches", models=str(models))
    with running_worker(settings):
        yield settings


def add(models: Path, name: str, batching: str, module: torch.nn.Module, *more: str) -> None:
    config = CONFIG.replace("max_batch_size: 8", more[0]) if more else CONFIG
    text = f"{config} dynamic_batching {{ {batching} }} {' '.join(more[1:])}"
    write_model(models, name, text, module)


@pytest.fixture
def clients(serving: Settings) -> Iterator[Clients]:
    with ThreadPoolExecutor(12) as pool, connect(serving.redis_url) as redis:
        yield Clients(serving, pool, redis)


class Clients:
    """Clients of one API, each with a thread of its own."""

    def __init__(self, settings: Settings, pool: ThreadPoolExecutor, redis: Redis) -> None:
        self.app = create_app(settings)
        self.pool = pool
        self.redis = redis
        self.prefix = settings.key_prefix
        self.done: dict[float, float] = {}

    def post(self, model: str, values: list[float], rows: int = 1) -> Future[Any]:
        """Ask for rows of these values."""
        tensor = {"name": "x", "datatype": "FP32", "shape": [rows, len(values)]}
        body = {"inputs": [tensor | {"data": values * rows}]}
        asked = self.pool.submit(
            lambda: answer(self.client().post(f"/v2/models/{model}/infer", json=body))
        )
        asked.add_done_callback(lambda _: self.done.setdefault(values[0], monotonic()))
        return asked

    def queue(self, model: str, *shapes: int) -> list[Future[Any]]:
        """Ask one after the other, each when the one before it waits, for rows of these sizes."""
        key = QueueKeys(self.prefix, f"{model}/1").queues[0]
        asked = []
        for depth, size in enumerate(shapes, 1):
            asked.append(self.post(model, [1.0] * size))
            if depth < len(shapes):
                wait_until(lambda: self.redis.llen(key) == depth, 5, f"{depth} wait")  # noqa: B023
        return asked

    def client(self) -> FlaskClient:
        return self.app.test_client()

    def stats(self, model: str) -> tuple[dict[int, int], dict[str, int]]:
        """Return how many batches of each size there were, and how many left for which reason."""
        (found,) = answer(self.client().get(f"/v2/models/{model}/stats"))["model_stats"]
        sizes = {
            each["batch_size"]: each["compute_infer"]["count"] for each in found["batch_stats"]
        }
        return sizes, {why: number for why, number in found["batches_left"].items() if number}


def test_a_preferred_size_leaves_at_once_and_the_rest_after_the_delay(clients: Clients) -> None:
    for asked in [clients.post("preferring", [1.0, 2.0], rows) for rows in (3, 1, 1)]:
        asked.result()

    sizes, reasons = clients.stats("preferring")

    assert sum(reasons.values()) == sum(sizes.values()) == 2
    assert (sizes, reasons) in [
        ({4: 1, 1: 1}, {"preferred": 1, "delay": 1}),
        ({2: 1, 3: 1}, {"preferred": 1, "delay": 1}),
    ]


def test_another_shape_sends_a_batch_off(clients: Clients) -> None:
    for asked in clients.queue("waiting", 2, 2, 3):
        asked.result()

    assert clients.stats("waiting") == ({2: 1, 1: 1}, {"shape": 1, "delay": 1})


def test_a_model_without_a_delay_is_asked_at_once(clients: Clients) -> None:
    found = clients.post("greedy", [1.0, 2.0]).result()

    assert found["timings"]["queue_seconds"] < DELAY_SECONDS / 2
    assert clients.stats("greedy") == ({1: 1}, {"greedy": 1})


@pytest.mark.parametrize(("model", "in_order"), [("ordered", True), ("unordered", False)])
def test_two_instances_answer_in_the_order_of_asking_when_told_to(
    clients: Clients, model: str, in_order: bool
) -> None:
    keys = QueueKeys(clients.prefix, f"{model}/1")
    began = monotonic()
    slow = clients.post(model, [BUSY, 0.0])
    wait_until(lambda: list(clients.redis.scan_iter(keys.inflight + "*")), 5, "it is computed")
    quick = clients.post(model, [0.0, 0.0])
    for asked in (slow, quick):
        asked.result()

    slow_seconds, quick_seconds = (clients.done[value] - began for value in (BUSY, 0.0))
    assert (quick_seconds < 0.7 * slow_seconds) is not in_order
    assert (quick_seconds > 0.9 * slow_seconds) is in_order
