"""Many texts travel in pieces: out of others' way, within their time, gone with their client."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import pytest
from flask.testing import FlaskClient
from redis import Redis
from registered import SUPERVISOR, register
from registered import spec as described
from two_ends import free
from waiting import wait_until
from werkzeug.test import TestResponse

from api.app import create_app
from shared.messages import InferResult, Tensor
from shared.model_spec import ModelSpec, TensorSpec
from shared.registry.desired_state import Serving
from shared.registry.desired_store import DesiredStore
from shared.registry.snapshot import InstanceRecord
from shared.request_queue.claimed import Claimed
from shared.request_queue.keys import QueueKeys
from shared.request_queue.worker_end import WorkQueue
from shared.settings import Settings
from shared.wire.client import connect
from shared.wire.wire import open_wire

BATCH, PIECE = 16, 4
UNDER_WAY = 3 * BATCH // PIECE
MANY = [f"{number}" for number in range(2048)]


def vector_model(version: str) -> ModelSpec:
    """Describe a model of strings, whose vectors a test makes by hand."""
    text = TensorSpec(name="text", datatype="BYTES", dims=(1,))
    return described("hand", text).with_changes(version=version, max_batch_size=BATCH)


class World(NamedTuple):
    """An API, and the queue of a version by whose hand nothing is claimed but a test's."""

    client: FlaskClient
    redis: Redis
    settings: Settings
    pool: ThreadPoolExecutor

    def ask(self, texts: list[str] | str, **more: Any) -> Future[TestResponse]:
        """Ask for vectors, in a thread of its own."""
        body = {"model": "hand", "input": texts}
        return self.pool.submit(self.client.post, "/v1/embeddings", json=body, **more)

    def keys(self, version: str = "1") -> QueueKeys:
        return QueueKeys.of(vector_model(version), self.settings.key_prefix).with_bulk

    def depths(self, version: str = "1") -> list[int]:
        """Return how many requests wait at the usual level, and how many behind it."""
        return [int(self.redis.llen(queue)) for queue in self.keys(version).queues]

    def waiting(self, *depths: int, version: str = "1") -> None:
        wait_until(lambda: self.depths(version) == list(depths), 10, f"{depths} requests wait")

    def work(self, version: str = "1") -> WorkQueue:
        wire = open_wire(self.redis)
        return WorkQueue(wire, self.keys(version), f"hand-{version}", result_ttl_seconds=60.0)


def texts_of(claimed: Claimed) -> list[str]:
    return [text.decode() for text in claimed.request().inputs[0].array().ravel()]


def answer(work: WorkQueue, claimed: list[Claimed], mark: float) -> None:
    """Answer each text with its length, its number and a mark."""
    results = []
    for each in claimed:
        rows = [[len(text), float(text), mark] for text in texts_of(each)]
        outputs = (Tensor.of("out", np.array(rows, np.float32)),)
        results.append(InferResult(outputs).encode())
    work.publish(claimed, free(results, claimed))


def answer_all(work: WorkQueue, asked: Future[TestResponse], mark: float) -> int:
    """Answer until a client has its answer; return in how many batches."""
    batches = 0
    while not asked.done():
        claimed = work.claim(BATCH, 0.0)
        if claimed:
            batches += 1
            answer(work, claimed, mark)
    return batches


@pytest.fixture
def world(settings: Settings) -> Iterator[World]:
    registry = register(settings, vector_model("1"), vector_model("2"))
    for version in "12":
        registry.put_instance(
            InstanceRecord(
                id=f"hand-{version}", supervisor=SUPERVISOR, model="hand", version=version,
                state="ready",
            )
        )  # fmt: skip
    redis = connect(settings.redis_url)
    with ThreadPoolExecutor(4) as pool:
        world = World(create_app(settings).test_client(), redis, settings, pool)
        serve(world, "1")
        yield world
    redis.close()


def serve(world: World, default: str) -> None:
    store = DesiredStore(world.redis, world.settings.key_prefix)
    serving = Serving(versions={version: f"hand/{version}" for version in "12"}, default=default)
    assert store.serve("hand", serving, (), store.changes())


def test_a_few_batches_are_under_way_and_one_piece_is_in_nobodys_way_but_its_own(
    world: World,
) -> None:
    many = world.ask(MANY)
    world.waiting(1, UNDER_WAY - 1)
    one = world.ask("7")
    world.waiting(2, UNDER_WAY - 1)

    work = world.work()
    claimed = work.claim(BATCH, 0.0)

    assert ["7"] in map(texts_of, claimed)  # it goes with the very next batch
    assert sum(each.rows for each in claimed) == 1 + PIECE  # the others have batches of their own
    answer(work, claimed, 1.0)
    assert one.result(timeout=30).get_json()["data"][0]["embedding"] == [1.0, 7.0, 1.0]
    # A piece is at the usual level again, or a model that is always busy would never end it.
    world.waiting(1, UNDER_WAY - 1)
    answer_all(work, many, 1.0)
    vectors = [each["embedding"] for each in many.result().get_json()["data"]]
    assert [vector[1] for vector in vectors] == list(range(len(MANY)))


def test_as_many_texts_as_a_batch_has_travel_as_one_request(world: World) -> None:
    asked = world.ask(MANY[:BATCH])
    world.waiting(1, 0)

    assert answer_all(world.work(), asked, 1.0) == 1


def test_a_client_that_leaves_takes_all_its_texts_back(world: World) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    theirs = socket.create_connection(listener.getsockname())
    ours, _ = listener.accept()
    asked = world.ask(MANY, environ_overrides={"gunicorn.socket": ours})
    world.waiting(1, UNDER_WAY - 1)

    theirs.close()

    assert asked.result(timeout=30).get_json()["error"]["code"] == "client_left"
    world.waiting(0, 0)
    counts = world.redis.hgetall(world.keys().counts)
    assert counts == {b"cancelled": str(UNDER_WAY).encode()}
    ours.close()
    listener.close()


def test_no_text_has_more_time_than_the_request(world: World) -> None:
    asked = world.ask(MANY, headers={"X-Request-Timeout": "1.5"})
    world.waiting(1, UNDER_WAY - 1)
    work = world.work()
    first = work.claim(BATCH, 0.0)
    answer(work, first, 1.0)
    world.waiting(1, UNDER_WAY - 1)  # new ones, with what is left

    response = asked.result(timeout=15)  # which is less than one without a time of its own has

    assert (response.status_code, response.get_json()["error"]["type"]) == (503, "server_error")
    assert response.get_json()["error"]["code"] == "request_expired"
    world.waiting(0, 0)


def test_one_answer_has_the_vectors_of_one_version(world: World) -> None:
    asked = world.ask(MANY[:200])
    world.waiting(1, UNDER_WAY - 1)
    old, new = world.work("1"), world.work("2")
    answer(old, old.claim(BATCH, 0.0), 1.0)
    world.waiting(1, UNDER_WAY - 1)

    serve(world, "2")
    answer(old, old.claim(BATCH, 0.0), 1.0)  # what was pushed before is answered, and thrown away
    answer_all(new, asked, 2.0)

    vectors = [each["embedding"] for each in asked.result().get_json()["data"]]
    assert {vector[2] for vector in vectors} == {2.0}
    assert [vector[1] for vector in vectors] == list(range(200))
    world.waiting(0, 0)


def test_one_text_that_fails_fails_the_request_and_takes_the_others_back(world: World) -> None:
    asked = world.ask(MANY)
    world.waiting(1, UNDER_WAY - 1)
    work = world.work()
    claimed = work.claim(BATCH, 0.0)
    wrong = np.full((PIECE, 3), np.nan, np.float32)
    results = [InferResult((Tensor.of("out", wrong),)).encode() for _ in claimed]

    work.publish(claimed, free(results, claimed))

    response = asked.result(timeout=30)
    assert (response.status_code, response.get_json()["error"]["code"]) == (500, "bad_model_output")
    world.waiting(0, 0)
    counts = world.redis.hgetall(world.keys().counts)
    assert counts == {b"cancelled": str(UNDER_WAY - len(claimed)).encode()}
