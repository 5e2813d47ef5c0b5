"""Levels of priority: the lower number overtakes; a model without levels has one queue."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from answers import answer, refusal
from counting_model import CountingModel, counting_model, v2
from flask import Flask
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2
from waiting import wait_until

from api.app import create_app
from shared.settings import Settings
from worker.repository.config.batching import read_batching

INFER = "/v2/models/fake/infer"
LEVELS = {"priority_levels": 3, "default_priority_level": 2}


def order_of(app: Flask, model: CountingModel, *asked: tuple[float, dict[str, Any]]) -> list[float]:
    """Ask while the model is busy, in this order; return the order in which it computed."""
    model.gate.clear()
    with ThreadPoolExecutor(len(asked) + 1) as pool:
        first = pool.submit(app.test_client().post, INFER, json=v2(0.0))
        wait_until(model.busy, 5, "the first is in flight")
        answers = []
        for depth, (value, parameters) in enumerate(asked, 1):
            post = app.test_client().post
            answers.append(pool.submit(post, INFER, json=v2(value, **parameters)))
            wait_until(lambda: model.depth() == depth, 5, f"{value} waits")  # noqa: B023
        model.gate.set()
        for each in [first, *answers]:
            answer(each.result())
    return model.computed[1:]


def test_the_lower_level_goes_first_and_the_default_level_is_the_models(settings: Settings) -> None:
    with counting_model(settings, **LEVELS) as model:
        order = order_of(
            create_app(settings),
            model,
            (3.0, {"priority": 3}),
            (2.0, {}),
            (2.5, {"priority": 0}),
            (2.75, {"priority": 2}),
            (1.0, {"priority": 1}),
        )

    assert order == [1.0, 2.0, 2.5, 2.75, 3.0]


def test_of_very_many_levels_the_lower_goes_first(settings: Settings) -> None:
    levels, default = 2**64 - 1, 2**40
    message = text_format.Parse(
        f"priority_levels: {levels} default_priority_level: {default}",
        model_config_pb2.ModelDynamicBatching(),
    )
    fields = read_batching(model_config_pb2.ModelConfig(max_batch_size=1, dynamic_batching=message))
    with counting_model(settings, **fields) as model:
        order = order_of(
            create_app(settings),
            model,
            (9.0, {"priority": levels}),
            (5.0, {"priority": 10**6}),
            (8.5, {"priority": levels - 1}),
            (8.0, {"priority": 2**63}),
            (6.0, {}),
            (7.0, {"priority": 2**40 + 1}),
            (3.0, {"priority": 31}),
            (4.0, {"priority": 32}),
            (1.0, {"priority": 1}),
        )
        beyond = json.dumps(v2(1.0, priority=levels + 1))
        refusal(create_app(settings).test_client().post(INFER, data=beyond))

    assert order == [1.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 8.5, 9.0]


def test_without_levels_priority_is_ignored(settings: Settings) -> None:
    with counting_model(settings) as model:
        order = order_of(
            create_app(settings), model, (1.0, {"priority": 9}), (2.0, {"priority": 1}), (3.0, {})
        )

    assert order == [1.0, 2.0, 3.0]


def test_an_asynchronous_request_waits_on_its_level(settings: Settings) -> None:
    client = create_app(settings).test_client()
    with counting_model(settings, **LEVELS) as model:
        model.gate.clear()
        later = {"Prefer": "respond-async"}
        accepted = [client.post(INFER, json=v2(0.0), headers=later)]
        wait_until(model.busy, 5, "the first is in flight")
        accepted += [
            client.post(INFER, json=v2(float(level), priority=level), headers=later)
            for level in (3, 1)
        ]
        positions = [client.get(each.location).get_json()["position"] for each in accepted[1:]]
        model.gate.set()
        for each in accepted:
            answer(client.get(each.location + "?wait=10"))

    assert positions == [1, 0]
    assert model.computed == [0.0, 1.0, 3.0]


@pytest.mark.parametrize("priority", [4, -1, 1.0, "1", True])
def test_a_level_that_the_model_does_not_have_is_refused(settings: Settings, priority: Any) -> None:
    with counting_model(settings, **LEVELS) as model:
        refusal(create_app(settings).test_client().post(INFER, json=v2(1.0, priority=priority)))

    assert model.computed == []
