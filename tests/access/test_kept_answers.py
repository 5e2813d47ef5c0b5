"""What is kept for who asks later has a limit, of which one key leaves a fifth to the others."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace

import pytest
from aged_queue import AgedQueue, Asked
from answers import answer, refusal
from counting_model import counting_model, v2
from fake_backend import answered
from flask import Flask
from redis import Redis
from waiting import wait_until

from api.app import create_app
from shared.errors import QueueFull
from shared.messages import InferResult, Tensor
from shared.request_queue.async_records import KEPT_BESIDES_BYTES
from shared.request_queue.async_requests import AsyncRequests
from shared.request_queue.limits import Kept
from shared.settings import Settings
from shared.wire.client import connect

INFER = "/v2/models/fake/infer"
LATER = {"Prefer": "respond-async"}
FULL = "as many bytes of answers, records and Idempotency-Keys as may be are kept for this model"


@pytest.fixture
def redis(settings: Settings) -> Iterator[Redis]:
    with connect(settings.redis_url) as client:
        yield client


@pytest.fixture
def queue(settings: Settings, redis: Redis) -> Iterator[AgedQueue]:
    queue = AgedQueue(replace(settings, max_kept_bytes=10_000), redis)
    yield queue
    queue.close()


def requests_of(queue: AgedQueue) -> AsyncRequests:
    return AsyncRequests(queue.redis, queue.keys, queue.limits)


def kept_bytes(queue: AgedQueue) -> int:
    return int(queue.redis.hget(queue.keys.kept_bytes, "all") or 0)


def kept(size: int, owner: str = "", seconds: float = 60.0, open_seconds: float = 0.0) -> Kept:
    return Kept(size, seconds, open_seconds, owner)


def post_until_refused(app: Flask, most: int = 40, **headers: str) -> int:
    """Post until a request is refused for what is kept; return how many were accepted."""
    for count in range(most):
        named = LATER | {name: f"{value}-{count}" for name, value in headers.items()}
        response = app.test_client().post(INFER, json=v2(1.0), headers=named)
        if response.status_code == 503:
            assert refusal(response, 503, "queue_full").startswith(FULL)
            assert 1 <= int(response.headers["Retry-After"]) <= 60
            return count
        assert response.status_code in (200, 202)
    raise AssertionError(f"{most} were accepted")


@pytest.mark.parametrize("headers", [{}, {"Idempotency-Key": "k"}], ids=["", "idempotent"])
def test_so_much_is_kept_of_a_model(settings: Settings, headers: dict[str, str]) -> None:
    app = create_app(replace(settings, max_kept_bytes=16_000))
    with counting_model(settings):
        count = post_until_refused(app, **headers)

        assert 16_000 / 3_000 < count < 16_000 / KEPT_BESIDES_BYTES
        assert app.test_client().post(INFER, json=v2(1.0)).status_code == 200, "nothing is kept"
        shown = app.test_client().get("/metrics").text
        kept_now = re.search(r'ferry_kept_bytes\{model="fake",version="1"\} (\S+)', shown)
        assert kept_now and 8_000 < float(kept_now[1]) < 20_000


def test_a_refused_request_leaves_its_idempotency_key_free(settings: Settings) -> None:
    app = create_app(replace(settings, max_kept_bytes=4_000))
    with counting_model(settings) as model:
        count = post_until_refused(app, **{"Idempotency-Key": "k"})
        model.redis.delete(model.keys.kept, model.keys.kept_bytes)

        headers = {"Idempotency-Key": f"k-{count}"}
        answer(app.test_client().post(INFER, json=v2(2.0), headers=headers))
        wait_until(lambda: len(model.computed) == count + 1, 30, "all are computed")


def test_a_request_that_comes_again_is_kept_once(settings: Settings) -> None:
    app = create_app(settings)
    with counting_model(settings) as model:
        sums = []
        for _ in range(3):
            headers = {"Idempotency-Key": "the same"}
            answer(app.test_client().post(INFER, json=v2(2.0), headers=headers))
            sums.append(model.redis.hget(model.keys.kept_bytes, "all"))

    assert len(set(sums)) == 1


def test_what_the_queue_refuses_is_not_kept(settings: Settings) -> None:
    app = create_app(replace(settings, max_queue_size=1))
    with counting_model(settings) as model:
        model.gate.clear()
        for _ in range(2):  # one in flight, one waits
            app.test_client().post(INFER, json=v2(1.0), headers=LATER)
            wait_until(model.busy, 30, "the first is in flight")
        before = model.redis.hget(model.keys.kept_bytes, "all")
        response = app.test_client().post(INFER, json=v2(1.0), headers=LATER)
        assert refusal(response, 503, "queue_full") == "Exceeds maximum queue size"

        assert model.redis.hget(model.keys.kept_bytes, "all") == before
        model.gate.set()


def test_records_count_among_the_bytes_that_wait(settings: Settings) -> None:
    app = create_app(replace(settings, max_queue_bytes=6_000))
    with counting_model(settings) as model:
        model.gate.clear()
        body = v2(1.0) | {"id": "i" * 1000}
        statuses = [
            app.test_client().post(INFER, data=json.dumps(body), headers=LATER).status_code
            for _ in range(6)
        ]
        model.gate.set()

    assert statuses[:2] == [202, 202] and statuses[-1] == 503


def test_an_answer_counts_until_it_is_forgotten(queue: AgedQueue) -> None:
    requests, asked = requests_of(queue), Asked("a", asynchronous=True)
    requests.keep(asked.id, kept(100, open_seconds=60.0))
    queue.push(asked)
    assert kept_bytes(queue) > 100, "there is a place for its answer"

    batch = queue.take()
    result = InferResult((Tensor("y", "UINT8", (500,), bytes(500)),)).encode()
    queue.ends[0].publish(batch, answered(batch, [result]))

    assert kept_bytes(queue) == 100 + len(result)
    requests.keep(asked.id, None)
    assert kept_bytes(queue) == len(result)


def test_an_answer_that_is_larger_than_its_place_is_kept_and_the_next_request_refused(
    queue: AgedQueue,
) -> None:
    requests = requests_of(queue)
    for name in "ab":
        requests.keep(Asked(name, asynchronous=True).id, kept(100, open_seconds=60.0))
        queue.push(Asked(name, asynchronous=True))
    batch = queue.take()
    result = InferResult((Tensor("y", "UINT8", (8000,), bytes(8000)),)).encode()
    queue.ends[0].publish(batch, answered(batch, [result] * 2))

    found = [requests.state(item.id).result for item in batch]
    assert all(each is not None and each.error is None for each in found)
    assert kept_bytes(queue) == 200 + 2 * len(result)
    with pytest.raises(QueueFull):
        requests.keep("next", kept(100))


def test_what_is_over_makes_room(queue: AgedQueue) -> None:
    requests = requests_of(queue)
    requests.keep("first", kept(9_000, seconds=0.3))
    with pytest.raises(QueueFull) as caught:
        requests.keep("second", kept(2_000))
    assert caught.value.retry_after_seconds == 1

    def is_kept() -> bool:
        try:
            requests.keep("second", kept(2_000))
        except QueueFull:
            return False
        return True

    wait_until(is_kept, 30, "the first is forgotten")
    assert kept_bytes(queue) == 2_000


def test_one_key_leaves_a_fifth_to_the_others(queue: AgedQueue) -> None:
    requests = requests_of(queue)

    def fill(owner: str) -> int:
        for count in range(100):
            try:
                requests.keep(f"{owner}{count}", kept(100, owner))
            except QueueFull as error:
                assert "this model and API key" in error.message or owner == "b"
                return count
        raise AssertionError("there is no limit")

    assert fill("a") == 80
    assert fill("b") == 16
    assert fill("a") == 0


def test_a_model_keeps_one_answer_of_any_size(queue: AgedQueue) -> None:
    requests_of(queue).keep("large", kept(50_000, "a"))

    assert kept_bytes(queue) == 50_000
