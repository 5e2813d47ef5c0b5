"""The response cache: the same question asked again, or at the same time, is computed once."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from counting_model import POISON, CountingModel, counting_model, v2
from flask.testing import FlaskClient
from waiting import wait_until

from api.app import create_app
from shared.settings import Settings

URL = "/v2/models/fake/infer"


@pytest.fixture
def model(settings: Settings) -> Iterator[CountingModel]:
    with counting_model(settings, cached=True) as model:
        yield model


@pytest.fixture
def client(settings: Settings, model: CountingModel) -> FlaskClient:
    return create_app(settings).test_client()


def statistics(client: FlaskClient) -> dict[str, int]:
    """Return the counts of Triton's statistics by name."""
    (found,) = client.get("/v2/models/fake/stats").get_json()["model_stats"]
    counts = {name: each["count"] for name, each in found["inference_stats"].items()}
    return counts | {name: found[name] for name in ("inference_count", "execution_count")}


def test_the_same_question_is_computed_once(client: FlaskClient, model: CountingModel) -> None:
    first, second = (client.post(URL, json=v2(3.0)) for _ in range(2))

    assert model.computed == [3.0]
    assert second.get_json()["outputs"] == first.get_json()["outputs"]


def test_fifty_identical_requests_at_once_are_computed_once(
    client: FlaskClient, model: CountingModel
) -> None:
    model.gate.clear()
    with ThreadPoolExecutor(50) as pool:
        answers = [pool.submit(client.post, URL, json=v2(3.0)) for _ in range(50)]
        wait_until(lambda: model.redis.llen(asked(model)) == 50, 20, "all follow the first")
        model.gate.set()
        outputs = [answer.result().get_json()["outputs"] for answer in answers]

    assert model.computed == [3.0]
    assert all(each[0]["data"] == [6.0, 6.0] for each in outputs)
    assert statistics(client) == {
        "success": 50, "fail": 0, "queue": 50, "cache_hit": 49, "cache_miss": 1,
        "compute_input": 1, "compute_infer": 1, "compute_output": 1,
        "inference_count": 1, "execution_count": 1,
    }  # fmt: skip


def asked(model: CountingModel) -> str:
    """Return the list of the only question that is open, or an empty name."""
    found: list[Any] = list(model.redis.scan_iter(model.keys.tag.replace("{", "[{]") + "asked:*"))
    return found[0].decode() if found else ""
