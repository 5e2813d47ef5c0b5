"""Each API key has a share of what may wait: one that asks too much shuts out no other."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from http.client import HTTPConnection
from itertools import count
from os import urandom
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from aged_queue import PROCESS, AgedQueue
from counting_model import CountingModel, counting_model
from ferry_processes import free_port, running_gunicorn
from grpc_process import grpc_client, row, running_grpc
from redis import Redis
from registered import register, spec
from test_api_keys import made
from tritonclient import grpc as triton_grpc
from tritonclient import http as triton_http
from tritonclient.utils import InferenceServerException
from waiting import wait_until

from api.access.shares import KeyShares
from api.infer.options import RequestOptions
from api.infer.question import Question
from api.rpc.places import Places
from api.services import Services
from shared.access.api_key import ApiKey
from shared.access.key_store import KeysInRedis, add, revoke
from shared.errors import QueueFull
from shared.messages import InferRequest, Tensor
from shared.model_spec import ModelSpec, QueuePolicy, TensorSpec
from shared.request_queue.commands import as_push, push_command
from shared.settings import Settings
from shared.wire.client import connect

PLACES = 100
FEW = 20
MANY_ROWS = 37_500
"""Of 300 KB: a batch of their own."""
BODY = json.dumps(
    {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [3, 4]}]}
).encode()
SIZE = 50
X = TensorSpec(name="x", datatype="FP32", dims=(1,))
SLOW, QUICK = spec("slow", X), spec("quick", X)
LEVELS = spec("levels", X).with_changes(priority_levels=2, default_priority_level=2)
A, B, C = (made(name)[0] for name in ("a", "b", "c"))


@pytest.fixture
def ours(settings: Settings) -> Settings:
    return replace(settings, max_waiting=PLACES, key_prefix=f"{settings.key_prefix}-key-shares")


def ask(services: Services, model: ModelSpec, key: ApiKey, level: int = 0) -> None:
    inputs = (Tensor.of("x", np.zeros((1, 1), np.float32)),)
    question = Question(model, inputs, options=RequestOptions(priority=level))
    services.queues.push(question.of_key(key))


def fill(services: Services, model: ModelSpec, key: ApiKey, level: int = 0) -> int:
    """Ask until it is refused; return how often it was not."""
    for number in range(PLACES + 1):
        try:
            ask(services, model, key, level)
        except QueueFull:
            return number
    raise AssertionError("never full")


# The places of a process.


@pytest.mark.parametrize("models", [(SLOW,), (SLOW, QUICK)])
def test_who_asks_too_much_of_a_model_leaves_places_to_each_other_key(
    ours: Settings, models: tuple[ModelSpec, ...]
) -> None:
    register(ours, *models)
    services = Services.of(ours)

    taken = [fill(services, SLOW, key) for key in (A, B, C)]

    assert taken[0] > PLACES / 2
    assert min(taken) > 1
    assert sum(taken) <= PLACES


def test_who_asks_all_models_leaves_a_fifth_of_all_places(ours: Settings) -> None:
    models = [spec(f"model-{number}", X) for number in range(30)]
    register(ours, *models)
    services = Services.of(ours)

    assert sum(fill(services, model, A) for model in models) >= PLACES * 4 // 5
    assert fill(services, models[0], B) > 1


def test_a_request_is_counted_before_another_is_looked_at(
    ours: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under gevent a read of Redis lets others run: between the two there must be none."""
    register(ours, SLOW)
    services = Services.of(ours)
    for key in (A, B):
        for _ in range(PLACES // 4):
            ask(services, SLOW, key)

    def look(*_: object, **__: object) -> None:
        raise AssertionError("reads Redis")

    monkeypatch.setattr(services.catalog, "_look", look)
    ask(services, SLOW, A)
    ask(services, SLOW, B)


def test_on_each_level_a_key_has_a_share(ours: Settings) -> None:
    register(ours, LEVELS)
    services = Services.of(ours)

    for key in (A, B, C):
        assert fill(services, LEVELS, key, level=2) > 0
        assert fill(services, LEVELS, key, level=1) > 0, "its own urgent ones have places too"


def test_a_model_leaves_places_of_its_key_to_others(ours: Settings) -> None:
    register(ours, SLOW, QUICK)
    services = Services.of(ours)

    for key in (A, B, C):
        assert fill(services, SLOW, key) > 0
        assert fill(services, QUICK, key) > 0


def test_a_lone_key_has_all_places_until_there_is_another(ours: Settings) -> None:
    register(ours, SLOW)
    services = Services.of(ours)
    store = KeysInRedis(connect(ours.redis_url), ours.key_prefix)
    add(store, A)
    add(store, B)
    revoke(store, B.name, now=1.0)
    services.guard.keyring.all()
    services.catalog.snapshot()

    assert fill(services, SLOW, A) == PLACES


def test_keys_are_counted_again_as_soon_as_one_may_have_too_many(ours: Settings) -> None:
    """What is known of a key is old by the requests that came since, and those that ended."""
    register(ours, SLOW, QUICK)
    services = Services.of(ours)
    inputs = (Tensor.of("x", np.zeros((1, 1), np.float32)),)
    question = Question(SLOW, inputs)
    asked = [services.queues.push(question.of_key(B)) for _ in range(PLACES // 2 + 5)]
    ask(services, SLOW, A)
    for each in asked:
        each.cancel()

    assert fill(services, SLOW, A) <= PLACES * 16 // 25 + 1


def test_calls_and_waits_for_answers_have_places_of_the_same_rule() -> None:
    places = KeyShares(20, None)
    assert sum(places.try_take(A) for _ in range(20)) == 17
    assert places.try_take(B)
    for _ in range(17):
        places.give_back(A)
    assert places.taken == 1 and places.try_take(A)

    lone = KeyShares(20, SimpleNamespace(is_of_one=True))  # type: ignore[arg-type]
    assert sum(lone.try_take(A) for _ in range(25)) == 20


def test_the_streams_of_a_key_leave_places_to_anothers_calls_but_not_to_its_own() -> None:
    places = Places(20)
    for _ in range(15):
        assert places.take(A, lambda: False)
    assert not places.take(A, lambda: True)

    with places.single(A), places.single(A), pytest.raises(QueueFull), places.single(A):
        pass
    with places.single(B):
        pass


# The queue.


class Queue:
    """The queue of a model in Redis, whose requests come with API keys."""

    def __init__(self, app: Settings, redis: Redis, **fields: object) -> None:
        self.queue = AgedQueue(app, redis, **{"max_batch_size": 8} | fields)
        self._numbers = count()

    def push(self, *owners: str, level: int = 1, size: int = 0, rows: int = 1) -> list[bytes]:
        """Push a request of each of these keys in one script; return what Redis says of each."""
        pushes = []
        for owner in owners:
            body = (Tensor.of("x", np.zeros(size // 4, np.float32)),) if size else ()
            request_id = f"{PROCESS}{next(self._numbers):024x}"
            request = InferRequest(request_id, rows, body, priority=level, owner=owner)
            pushes.append(as_push(request, self.queue.keys, self.queue.limits))
        self.queue.wire.send(push_command(self.queue.keys, self.queue.limits, pushes))
        reply: list[bytes] = self.queue.wire.reply()  # type: ignore[assignment]
        return reply

    def fill(self, owner: str, at_once: int = 1, **fields: int) -> int:
        """Push until it is refused; return how many were not."""
        taken = 0
        for _ in range(10 * SIZE):
            said = self.push(*at_once * [owner], **fields)
            taken += said.count(b"queued")
            if set(said) != {b"queued"}:
                return taken
        raise AssertionError("never full")


@pytest.fixture
def redis(settings: Settings) -> Iterator[Redis]:
    with connect(settings.redis_url) as client:
        yield client


@pytest.fixture
def queue(settings: Settings, redis: Redis) -> Iterator[Queue]:
    queue = Queue(replace(settings, max_queue_size=SIZE, max_queue_bytes=64 * 2**20), redis)
    yield queue
    queue.queue.close()


@pytest.mark.parametrize("at_once", [1, 7, 100])
def test_a_key_leaves_a_fifth_of_the_queue_to_others(queue: Queue, at_once: int) -> None:
    assert queue.fill("a", at_once) == SIZE * 4 // 5 + 1

    assert queue.fill("b") > SIZE // 10
    assert queue.push("a")[0].startswith(b"full ")
    assert queue.push("c") == [b"queued"], "however many are greedy"


def test_what_counts_is_what_waits_not_what_was_served(queue: Queue) -> None:
    queue.fill("a")
    queue.push("b")
    while queue.queue.redis.llen(f"{queue.queue.keys.queue}1"):
        assert queue.queue.take()

    assert queue.push(*20 * "b") == 20 * [b"queued"]
    assert queue.fill("a") > 10, "its turns of before are over"


def test_without_keys_the_whole_queue_is_for_all(queue: Queue) -> None:
    assert queue.fill("") == SIZE


def test_a_key_leaves_a_fifth_of_the_bytes_to_others(queue: Queue) -> None:
    assert queue.push(*10 * "b") == 10 * [b"queued"], "many, and small"

    assert queue.fill("a", size=8 * 2**20) == 6
    assert queue.push("b", size=8 * 2**20) == [b"queued"], "few bytes are its own"
    assert queue.push("c") == [b"queued"]


def test_a_key_leaves_a_fifth_of_a_level_to_others(settings: Settings, redis: Redis) -> None:
    policies = 2 * (QueuePolicy(max_queue_size=20),)
    queue = Queue(settings, redis, priority_levels=2, queue_policies=policies)

    assert queue.fill("a", level=2) == 17
    assert queue.push("b", level=2) == [b"queued"]
    assert queue.push("b", level=1) == [b"queued"]
    queue.queue.close()


# All of it, served.


@pytest.fixture(scope="module")
def served(redis_url: str) -> Iterator[tuple[Settings, CountingModel, dict[str, str]]]:
    """Both servers, a model that answers when it may, and the texts of two keys."""
    settings = Settings(
        redis_url=redis_url, key_prefix="key-shares", port=free_port(), grpc_port=free_port(),
        api_processes=1, max_waiting=FEW, grpc_threads=FEW, max_bodies_bytes=1_000_000,
        request_timeout_seconds=90.0,
    )  # fmt: skip
    store, secrets = KeysInRedis(connect(redis_url), settings.key_prefix), {}
    for name in ("greedy", "modest"):
        key, secrets[name] = made(name)
        add(store, key)
    with (
        counting_model(settings, max_batch_size=MANY_ROWS) as model,
        running_gunicorn(settings),
        running_grpc(settings),
    ):
        yield settings, model, secrets


def post(settings: Settings, secret: str, **headers: str) -> int:
    connection = HTTPConnection("127.0.0.1", settings.port, timeout=60)
    head = {"X-API-Key": secret} | {name.replace("_", "-"): text for name, text in headers.items()}
    connection.request("POST", "/v2/models/fake/infer", BODY, head)
    status = connection.getresponse().status
    connection.close()
    return status


def call(settings: Settings, secret: str) -> int:
    with grpc_client(settings) as client:
        try:
            client.infer("fake", [row(1, 2)], headers={"x-api-key": secret})
        except InferenceServerException as error:
            assert error.status() == "StatusCode.UNAVAILABLE", error
            return 503
    return 200


def post_by_flask(settings: Settings, secret: str) -> int:
    return post(settings, secret, Idempotency_Key=urandom(8).hex())


@pytest.mark.parametrize("ask_one", [post, post_by_flask, call])
def test_a_key_that_asks_too_much_does_not_have_another_refused(
    served: tuple[Settings, CountingModel, dict[str, str]],
    ask_one: Callable[[Settings, str], int],
) -> None:
    settings, model, secrets = served
    model.gate.clear()
    with ThreadPoolExecutor(3 * FEW) as pool:
        try:
            greedy = [
                pool.submit(ask_one, settings, secrets["greedy"]) for _ in range(FEW + FEW // 2)
            ]
            wait_until(lambda: sum(each.done() for each in greedy) >= FEW // 2, 60, "some refused")
            modest = pool.submit(ask_one, settings, secrets["modest"])
            with suppress(TimeoutError):  # a refusal comes at once
                modest.result(1.0)
        finally:
            model.gate.set()
        statuses = {each.result() for each in greedy}

    assert statuses == {200, 503}
    assert modest.result() == 200


def large(client: Any, made_by: Any, settings: Settings, secret: str) -> int:
    """Send a large body by one of the clients; return the status, as HTTP has it."""
    port = settings.port if made_by is triton_http else settings.grpc_port
    values = np.zeros((MANY_ROWS, 2), np.float32)
    given = made_by.InferInput("x", list(values.shape), "FP32")
    given.set_data_from_numpy(values)
    with client(f"127.0.0.1:{port}") as opened:
        try:
            opened.infer("fake", [given], headers={"x-api-key": secret})
        except InferenceServerException as error:
            assert error.status() in ("503", "StatusCode.UNAVAILABLE"), error.message()
            return 503
    return 200


@pytest.mark.parametrize("made_by", [triton_http, triton_grpc])
def test_large_bodies_count_by_the_byte_and_are_shared_by_keys(
    served: tuple[Settings, CountingModel, dict[str, str]], made_by: Any
) -> None:
    settings, model, secrets = served
    send = partial(large, made_by.InferenceServerClient, made_by, settings)
    asked: list[Future[int]] = []
    model.gate.clear()
    with ThreadPoolExecutor(4) as pool:
        try:
            for name in ("greedy", "greedy", "greedy", "modest"):
                if name == "modest":
                    refused = send(secrets["greedy"])
                asked.append(pool.submit(send, secrets[name]))
                wait_until(lambda: model.depth() + model.busy() == len(asked), 30, "it is held")
            also_refused = send(secrets["modest"])
        finally:
            model.gate.set()

    assert [each.result() for each in asked] == [200] * 4
    assert (refused, also_refused) == (503, 503)
    assert send(secrets["greedy"]) == 200, "its bytes are free again"
