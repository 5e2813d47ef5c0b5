"""The response cache with real workers: they are killed, and come back with another model."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from answers import answer, refusal
from ferry_processes import running_worker
from flask.testing import FlaskClient
from scripted_models import Deadly, Slow, add_model, save_scripted
from waiting import wait_until
from worker_processes import Served, seen

from api.app import create_app
from shared.settings import Settings

CACHED = "response_cache { enable: true }"
LONG = 4000.0


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    models = tmp_path_factory.mktemp("models")
    add_model(models, Slow(), more=CACHED)
    add_model(models, Deadly(), more=CACHED)
    return models


@pytest.fixture(scope="module")
def serving(redis_url: str, models: Path) -> Iterator[Settings]:
    settings = Settings(redis_url=redis_url, key_prefix="cachecrash", models=str(models))
    with running_worker(settings):
        yield settings


@pytest.fixture(scope="module")
def client(serving: Settings) -> FlaskClient:
    return create_app(serving).test_client()


def body(value: float) -> dict[str, Any]:
    inputs = [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [value, value]}]
    return {"inputs": inputs}


def followers(served: Served) -> int:
    lists = served.redis.scan_iter(served.keys.tag.replace("{", "[{]") + "asked:*")
    return sum(int(served.redis.llen(key)) - 1 for key in lists)


def test_a_killed_instance_costs_neither_the_leader_nor_its_followers(
    serving: Settings, client: FlaskClient
) -> None:
    with seen(serving, "slow") as slow, ThreadPoolExecutor(6) as pool:
        slow.wait_ready()
        url = "/v2/models/slow/infer"
        asked = [pool.submit(client.post, url, json=body(LONG)) for _ in range(5)]
        wait_until(lambda: followers(slow) == 4, 20, "all follow the first")

        os.kill(slow.holder().pid, signal.SIGKILL)
        answers = [each.result() for each in asked]

    outputs = [answer(each)["outputs"][0]["data"] for each in answers]
    assert outputs == [[2 * LONG, 2 * LONG]] * 5
    assert {answer(each)["timings"]["attempts"] for each in answers} == {2}
    assert sorted(each.headers["Ferry-Cache"] for each in answers) == ["hit"] * 4 + ["miss"]


def test_a_question_that_kills_its_process_is_given_up_for_all_who_ask_it(
    serving: Settings, client: FlaskClient
) -> None:
    with seen(serving, "deadly") as deadly, ThreadPoolExecutor(4) as pool:
        deadly.wait_ready()
        url = "/v2/models/deadly/infer"
        asked = [pool.submit(client.post, url, json=body(13.0)) for _ in range(4)]
        for each in asked:
            refusal(each.result(), 500, "model_crashed")

        assert answer(client.post(url, json=body(2.0)))["outputs"][0]["data"] == [4.0, 4.0]


class Tripled(torch.nn.Module):
    """Answers 3x."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 3.0


def test_a_model_that_was_replaced_while_nothing_ran_does_not_answer_from_the_old_cache(
    settings: Settings, tmp_path: Path
) -> None:
    file = add_model(tmp_path, Deadly(), more=CACHED)
    settings = Settings(**vars(settings) | {"models": str(tmp_path)})
    client, outputs, headers = create_app(settings).test_client(), [], []
    for _ in range(2):
        with running_worker(settings):
            answers = [client.post("/v2/models/deadly/infer", json=body(2.0)) for _ in range(2)]
            outputs += [answer(each)["outputs"][0]["data"][0] for each in answers]
            headers += [each.headers["Ferry-Cache"] for each in answers]
        save_scripted(Tripled(), file)

    assert headers == ["miss", "hit", "miss", "hit"]
    assert outputs == [4.0, 4.0, 6.0, 6.0]
