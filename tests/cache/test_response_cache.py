"""The response cache: the same question asked again, or at the same time, is computed once."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from answers import answer, refusal
from counting_model import POISON, CountingModel, counting_model, tensor, v2
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


def followers(model: CountingModel) -> int:
    """Return how many wait for somebody else's answer."""
    pattern = model.keys.tag.replace("{", "[{]") + "asked:*"
    return sum(int(model.redis.llen(key)) - 1 for key in model.redis.scan_iter(pattern))


def test_the_same_question_asked_again_is_not_computed_again(
    client: FlaskClient, model: CountingModel
) -> None:
    first, second = (client.post(URL, json=v2(3.0)) for _ in range(2))

    assert model.computed == [3.0]
    assert answer(second)["outputs"] == answer(first)["outputs"]
    assert [each.headers["Ferry-Cache"] for each in (first, second)] == ["miss", "hit"]


def test_an_answer_from_the_cache_says_so_and_what_it_cost(
    client: FlaskClient, model: CountingModel
) -> None:
    first, second = (answer(client.post(URL, json=v2(3.0)))["timings"] for _ in range(2))

    assert "cached" not in first
    assert second == {
        "queue_seconds": 0.0, "batch_wait_seconds": 0.0, "compute_seconds": 0.0,
        "batch_size": 0, "attempts": 1, "instance": "counting", "cached": True,
    }  # fmt: skip


def test_fifty_identical_requests_at_once_are_computed_once(
    client: FlaskClient, model: CountingModel
) -> None:
    model.gate.clear()
    with ThreadPoolExecutor(50) as pool:
        asked = [pool.submit(client.post, URL, json=v2(3.0)) for _ in range(50)]
        wait_until(lambda: followers(model) == 49, 20, "all follow the first")
        model.gate.set()
        answers = [each.result() for each in asked]

    assert model.computed == [3.0]
    assert all(answer(each)["outputs"][0]["data"] == [6.0, 6.0] for each in answers)
    headers = sorted(each.headers["Ferry-Cache"] for each in answers)
    assert headers == ["hit"] * 49 + ["miss"]
    assert statistics(client) == {
        "success": 50, "fail": 0, "queue": 50, "cache_hit": 49, "cache_miss": 1,
        "compute_input": 1, "compute_infer": 1, "compute_output": 1,
        "inference_count": 1, "execution_count": 1,
    }  # fmt: skip


def test_a_follower_says_how_long_it_waited(client: FlaskClient, model: CountingModel) -> None:
    model.gate.clear()
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(client.post, URL, json=v2(3.0)) for _ in range(2)]
        wait_until(lambda: followers(model) == 1, 20, "one follows the other")
        model.gate.set()
        timings = [answer(each.result())["timings"] for each in asked]

    (follower,) = [each for each in timings if "cached" in each]
    assert follower["queue_seconds"] > 0.0
    assert follower["compute_seconds"] == 0.0


@pytest.mark.parametrize(
    "other",
    [
        v2(4.0),
        v2(3.0, temperature=1),
        v2(3.0) | {"outputs": [{"name": "y"}]},
        {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [3.0, 3.5]}]},
    ],
    ids=["input", "parameter", "outputs", "second number"],
)
def test_another_question_is_computed(
    client: FlaskClient, model: CountingModel, other: dict[str, Any]
) -> None:
    client.post(URL, json=v2(3.0))

    assert client.post(URL, json=other).headers["Ferry-Cache"] == "miss"
    assert model.passes == 2


def test_parameters_may_come_in_any_order_and_terms_do_not_count(
    client: FlaskClient, model: CountingModel
) -> None:
    client.post(URL, json=v2(3.0, a=1, b=2))

    again = client.post(URL, json=v2(3.0, b=2, timeout=9_000_000, a=1) | {"id": "again"})

    assert again.headers["Ferry-Cache"] == "hit"
    assert answer(again)["id"] == "again"


def test_every_route_and_process_shares_what_is_kept(
    settings: Settings, client: FlaskClient, model: CountingModel
) -> None:
    other_process = create_app(settings).test_client()
    answers = [
        client.post("/predict/fake", json=tensor(3.0)),
        other_process.post(URL, json=v2(3.0)),
        client.post("/v1/models/fake:predict", json={"instances": [[3.0, 3.0]]}),
        client.post(URL, json=v2(3.0), headers={"Idempotency-Key": "k"}),
        client.post(URL, json=v2(3.0), headers={"Idempotency-Key": "k"}),
    ]

    assert [each.headers["Ferry-Cache"] for each in answers] == ["miss", *["hit"] * 4]
    assert answer(answers[0])["prediction"] == answer(answers[2])["predictions"] == [[6.0, 6.0]]
    assert model.passes == 1


def test_a_question_asked_for_later_is_answered_from_the_cache(
    client: FlaskClient, model: CountingModel
) -> None:
    client.post(URL, json=v2(3.0))

    accepted = client.post(URL, json=v2(3.0), headers={"Prefer": "respond-async"})
    later = client.get(accepted.headers["Location"])

    assert accepted.status_code == 202
    assert answer(later)["timings"]["cached"]
    assert later.headers["Ferry-Cache"] == "hit"
    assert model.passes == 1


def test_an_error_is_not_kept(client: FlaskClient, model: CountingModel) -> None:
    for _ in range(2):
        refusal(client.post(URL, json=v2(POISON)), 500, "model_failed")

    assert statistics(client)["cache_miss"] == 2
    assert statistics(client)["cache_hit"] == 0


def test_a_hit_needs_no_place_on_a_full_queue(settings: Settings) -> None:
    with counting_model(settings, cached=True) as model:
        client = create_app(Settings(**vars(settings) | {"max_queue_size": 1})).test_client()
        client.post(URL, json=v2(3.0))
        model.gate.clear()
        with ThreadPoolExecutor(2) as pool:
            running = pool.submit(client.post, URL, json=v2(4.0))
            wait_until(model.busy, 10, "one runs")
            waiting = pool.submit(client.post, URL, json=v2(5.0))
            wait_until(lambda: model.depth() == 1, 10, "one waits")

            refusal(client.post(URL, json=v2(6.0)), 503, "queue_full")
            assert client.post(URL, json=v2(3.0)).headers["Ferry-Cache"] == "hit"

            model.gate.set()
            assert running.result().status_code == waiting.result().status_code == 200


def test_a_model_without_a_cache_computes_each_time_and_says_nothing(settings: Settings) -> None:
    with counting_model(settings) as model:
        client = create_app(settings).test_client()
        answers = [client.post(URL, json=v2(3.0)) for _ in range(2)]

        assert model.passes == 2
        assert not any("Ferry-Cache" in each.headers for each in answers)
        assert statistics(client)["cache_miss"] == 0
        assert not list(model.redis.scan_iter(model.keys.tag.replace("{", "[{]") + "[acd]*[dt]:*"))


def test_a_leader_whose_deadline_passes_leaves_its_followers_an_answer(
    settings: Settings, model: CountingModel
) -> None:
    app = create_app(settings)
    model.gate.clear()
    with ThreadPoolExecutor(3) as pool:
        busy = pool.submit(app.test_client().post, URL, json=v2(1.0))
        wait_until(model.busy, 10, "the instance is busy")
        late = pool.submit(
            app.test_client().post, URL, json=v2(3.0), headers={"X-Request-Timeout": "3"}
        )
        wait_until(lambda: model.depth() == 1, 10, "the leader waits")
        follower = pool.submit(app.test_client().post, URL, json=v2(3.0))
        wait_until(lambda: followers(model) == 1, 10, "the other follows")

        refusal(late.result(), 503, "request_expired")
        wait_until(lambda: model.depth() == 1 and not followers(model), 10, "the next one leads")
        model.gate.set()

        assert answer(follower.result())["outputs"][0]["data"] == [6.0, 6.0]
        assert busy.result().status_code == 200
