"""Large tensors lie in body stores, and whatever becomes of these, requests are answered."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pytest
from ferry_processes import ROOT
from redis.exceptions import ConnectionError as RedisConnectionError
from store_server import StoreServer, store_servers
from two_ends import TwoEnds, free
from waiting import wait_until

from shared.bodies import stored
from shared.bodies.folder import Budget
from shared.bodies.store import COMMAND_SECONDS, Store
from shared.bodies.stored import StoredBodies
from shared.bodies.stores import BodyStores
from shared.bodies.worker_bodies import WorkerBodies
from shared.errors import BodyLost
from shared.messages import BESIDE_REDIS, LARGE_BYTES, InferRequest, InferResult, Tensor
from shared.request_queue.api_end import PendingRequest, RequestQueue
from shared.request_queue.claimed import Claimed
from shared.request_queue.keys import QueueKeys
from shared.request_queue.limits import Limits
from shared.request_queue.recovery import bring_in

PICTURE_BYTES = 150_528
BUDGET_BYTES = 4_000_000
SOON = 3
"""Seconds, far from the life of an answer in a store, also where a test is patient."""


class Stored(NamedTuple):
    """Both ends of a queue whose API process and instance know the same two stores."""

    ends: TwoEnds
    queue: RequestQueue
    servers: list[StoreServer]
    stores: BodyStores
    budget: Budget
    worker: WorkerBodies

    def push(self, count: int = PICTURE_BYTES) -> PendingRequest:
        request = picture(self.queue.new_id(), count)
        waiting = self.queue.push(request)
        wait_until(lambda: waiting.accepted, 10, "it is accepted")
        return waiting

    def body(self, waiting: PendingRequest) -> bytes:
        return self.ends.redis.get(self.ends.keys.body + waiting.id) or b""

    def keys(self) -> list[str]:
        return [key for server in self.servers for key in server.bodies()]

    def claim(self, count: int = 1) -> list[Claimed]:
        return self.ends.claim(count)

    def publish(self, item: Claimed, result: bytes) -> None:
        assert self.ends.work.publish([item], free([result], [item])) == 1

    def encoded(self, items: list[Claimed]) -> dict[str, bytes]:
        """Encode what a model would answer that returns what it is given."""
        answers = self.worker.answers()
        results = {
            item.id: answers.encoded(item.id, InferResult(item.request().inputs)) for item in items
        }
        answers.settle(results)
        return results

    def answer(self, *items: Claimed) -> None:
        results = self.encoded(list(items))
        for item in items:
            self.publish(item, results[item.id])

    def is_read(self) -> None:
        """Wait until the stores know that the API process reads answers."""
        wait_until(
            lambda: all(each.bodies(f"{self.ends.prefix}:reader:*") for each in self.servers),
            10,
            "a reader",
        )


@pytest.fixture(scope="module")
def servers() -> Iterator[list[StoreServer]]:
    with store_servers(2) as found:
        yield found


@pytest.fixture
def beside(ends: TwoEnds, servers: list[StoreServer]) -> Iterator[Stored]:
    urls, budget = ",".join(each.url for each in servers), Budget(BUDGET_BYTES)
    for each in servers:
        each.redis.flushall()
    stores = BodyStores.of(urls, ends.prefix)
    assert stores is not None
    worker = WorkerBodies(None, BodyStores.of(urls, ends.prefix))  # an instance has its own
    ends.work.bodies = worker
    bodies = StoredBodies(stores, budget, {ends.keys.model_key: worker.store_token}.__getitem__)
    queue = RequestQueue(ends.redis, ends.keys, Limits(), None, bodies)
    yield Stored(ends, queue, servers, stores, budget, worker)
    queue._courier.rest()


def picture(request_id: str, count: int = PICTURE_BYTES) -> InferRequest:
    large = np.random.default_rng(count).integers(0, 256, (1, count), np.uint8)
    inputs = (Tensor.of("n", np.array([[7]], np.int64)), Tensor.of("x", large))
    return InferRequest(request_id, 1, inputs, (), 60.0, bytes(8), parameters={"k": 1})


def pixels(result: InferResult | InferRequest) -> bytes:
    tensors = result.outputs if isinstance(result, InferResult) else result.inputs
    return bytes(tensors[1].data)


def test_large_bodies_are_spread_over_the_stores_and_redis_holds_next_to_nothing(
    beside: Stored,
) -> None:
    waiting = [beside.push(PICTURE_BYTES + number) for number in range(16)]

    assert all(len(beside.body(each)) < 300 for each in waiting)
    counts = [len(server.bodies()) for server in beside.servers]
    assert sum(counts) == 16
    assert min(counts) > 0
    for item in beside.claim(16):
        count = len(pixels(item.request()))
        assert pixels(item.request()) == pixels(picture(item.id, count))
        assert item.request().parameters == {"k": 1}
        assert item.size > PICTURE_BYTES


def test_large_answers_go_the_same_way_and_leave_nothing(beside: Stored) -> None:
    waiting = [beside.push() for _ in range(12)]
    beside.is_read()
    items = beside.claim(12)
    results = beside.encoded(items)

    assert all(result[:1] == BESIDE_REDIS and len(result) < 300 for result in results.values())
    for item in items:
        beside.publish(item, results[item.id])
    assert all(pixels(each.wait()) == pixels(picture(each.id)) for each in waiting)
    wait_until(lambda: not beside.keys(), SOON, "all is removed")
    assert beside.budget.take(BUDGET_BYTES)


def test_an_answer_to_a_small_request_lies_in_a_store_too(beside: Stored) -> None:
    waiting = beside.push(10)
    beside.is_read()
    (item,) = beside.claim()
    answers = beside.worker.answers()
    request = picture(item.id)
    results = {item.id: answers.encoded(item.id, InferResult(request.inputs))}
    answers.settle(results)

    assert len(results[item.id]) < 300
    beside.publish(item, results[item.id])
    assert pixels(waiting.wait()) == pixels(request)


def test_an_answer_that_nobody_reads_in_stores_is_whole(beside: Stored) -> None:
    for _ in range(2):  # the second time it is known
        answers = beside.worker.answers()
        request = picture("f" * 32)
        results = {request.id: answers.encoded(request.id, InferResult(request.inputs))}
        answers.settle(results)
        assert pixels(InferResult.decode(results[request.id])) == pixels(request)
    assert beside.keys() == []


def test_every_key_in_a_store_expires(beside: Stored) -> None:
    beside.push()
    beside.push()
    beside.is_read()
    beside.encoded(beside.claim(2))

    pattern = f"{beside.ends.prefix}:*"
    names = [(server, key) for server in beside.servers for key in server.bodies(pattern)]
    assert len(names) == 2 + 2 + len(beside.servers)
    assert all(0 < server.redis.pttl(key) < 200_000 for server, key in names)


def test_a_store_that_is_killed_in_the_middle_costs_no_request_its_answer(beside: Stored) -> None:
    waiting = [beside.push() for _ in range(8)]
    victim = beside.servers[0]
    victim.kill()
    try:
        items = beside.claim(8)
        lost = 0
        for item in items:
            try:
                item.request()
            except BodyLost as error:
                lost += 1
                beside.publish(item, InferResult(error=error).encode())
            else:
                beside.answer(item)
        assert 0 < lost < 8
        for item in beside.claim(lost):
            assert item.request().whole
            beside.answer(item)
        assert all(pixels(each.wait()) == pixels(picture(each.id)) for each in waiting)
    finally:
        victim.start()
    wait_until(lambda: not any(each.is_away for each in beside.stores), 10, "it is back")
    wait_until(lambda: not beside.keys(), 10, "nothing is left")


def test_a_store_that_hangs_is_waited_for_once(beside: Stored) -> None:
    beside.push()
    for server in beside.servers:
        server.hang()
    try:
        began = time.monotonic()
        waiting = [beside.push() for _ in range(10)]
        assert time.monotonic() - began < len(beside.servers) * COMMAND_SECONDS + 0.5
        assert all(len(beside.body(each)) > PICTURE_BYTES for each in waiting)
    finally:
        for server in beside.servers:
            server.go_on()
    wait_until(lambda: not any(each.is_away for each in beside.stores), 10, "they are back")
    assert len(beside.body(beside.push())) < 300


def test_a_full_store_is_left_alone_for_a_moment(beside: Stored) -> None:
    for server in beside.servers:
        server.redis.config_resetstat()
        server.redis.config_set("maxmemory", "1")
    try:
        waiting = [beside.push() for _ in range(4)]
    finally:
        for server in beside.servers:
            server.redis.config_set("maxmemory", "0")
    assert all(len(beside.body(each)) > PICTURE_BYTES for each in waiting)
    assert not any(each.is_away for each in beside.stores)
    for server in beside.servers:
        refused = server.redis.info("commandstats").get("cmdstat_set", {})
        assert refused.get("rejected_calls", 0) < len(waiting)
    wait_until(lambda: len(beside.body(beside.push())) < 300, 10, "they take bodies again")


def test_a_lost_answer_is_asked_for_again_whole(beside: Stored) -> None:
    waiting = beside.push(10)
    beside.is_read()
    (item,) = beside.claim()
    answers = beside.worker.answers()
    result = InferResult(picture(item.id).inputs)
    results = {item.id: answers.encoded(item.id, result)}
    answers.settle(results)
    for server in beside.servers:
        server.redis.flushall()
    beside.publish(item, results[item.id])

    (again,) = beside.claim()
    assert again.id == item.id
    assert again.request().whole
    beside.publish(again, result.encode())
    assert pixels(waiting.wait()) == pixels(picture(item.id))


def test_nothing_is_put_into_stores_for_a_while_after_a_loss(beside: Stored) -> None:
    waiting = beside.push()
    (item,) = beside.claim()
    beside.publish(item, InferResult(error=BodyLost.default()).encode())
    (again,) = beside.claim()

    assert len(beside.body(beside.push())) > PICTURE_BYTES
    beside.publish(again, InferResult().encode())
    assert waiting.wait() == InferResult()


def test_a_worker_without_the_setting_gets_all_through_redis(ends: TwoEnds, beside: Stored) -> None:
    bodies = StoredBodies(beside.stores, beside.budget, lambda _: "")
    queue = RequestQueue(ends.redis, ends.keys, Limits(), None, bodies)
    waiting = queue.push(picture(queue.new_id()))
    wait_until(lambda: waiting.accepted, 10, "it is accepted")

    assert len(beside.body(waiting)) > PICTURE_BYTES
    queue._courier.rest()


@pytest.mark.parametrize("knows", ["none", "others"])
def test_a_worker_that_does_not_know_the_store_says_that_the_body_is_lost(
    ends: TwoEnds, beside: Stored, knows: str
) -> None:
    others = BodyStores.of("redis://127.0.0.1:1", ends.prefix) if knows == "others" else None
    ends.work.bodies = WorkerBodies(None, others)
    beside.push()

    (item,) = beside.claim()
    with pytest.raises(BodyLost):
        item.request()


@pytest.mark.parametrize("how", ["gone", "shorter", "another nonce", "no reference"])
def test_a_body_that_is_not_as_the_message_says_is_lost(beside: Stored, how: str) -> None:
    waiting = beside.push()
    (server,) = [each for each in beside.servers if each.bodies()]
    (key,) = server.bodies()
    if how == "gone":
        server.redis.delete(key)
    elif how == "shorter":
        server.redis.set(key, b"short")
    else:
        body = beside.body(waiting)
        other = body[:5] + b"zzzz" + body[9:] if how == "another nonce" else body[:7]
        beside.ends.redis.set(beside.ends.keys.body + waiting.id, other, keepttl=True)

    (item,) = beside.claim()
    with pytest.raises(BodyLost):
        item.request()


def test_a_model_with_a_cache_has_whole_bodies(ends: TwoEnds, beside: Stored) -> None:
    keys = QueueKeys(ends.prefix, "cached/1", cached=True)
    bodies = StoredBodies(beside.stores, beside.budget, lambda _: beside.stores.token)

    assert RequestQueue(ends.redis, keys, Limits(), None, bodies)._shelf is None


def test_who_has_too_much_in_stores_goes_through_redis(beside: Stored) -> None:
    assert beside.budget.take(BUDGET_BYTES)

    assert len(beside.body(beside.push())) > PICTURE_BYTES


def test_thousands_of_clients_that_leave_leave_nothing_behind(beside: Stored) -> None:
    for _ in range(2000):
        beside.queue.push(picture(beside.queue.new_id(), LARGE_BYTES)).cancel()

    wait_until(lambda: not beside.keys(), 20, "all bodies are removed")
    wait_until(lambda: beside.budget.take(BUDGET_BYTES), 10, "all is freed")


def test_an_answer_for_which_nobody_waits_is_removed(beside: Stored) -> None:
    waiting = beside.push()
    beside.is_read()
    (item,) = beside.claim()
    results = beside.encoded([item])
    waiting.cancel()
    wait_until(lambda: len(beside.keys()) == 1, 10, "its body is removed")

    beside.queue._shelf.forget(item.id, results[item.id])  # type: ignore[union-attr]

    wait_until(lambda: not beside.keys(), SOON, "so is its answer")


def test_a_request_that_was_in_a_crash_is_whole_in_redis(beside: Stored) -> None:
    waiting = beside.push()
    beside.claim()

    bring_in(beside.ends.wire, beside.ends.keys, "i", beside.worker)

    asked = InferRequest.decode(waiting.id, 1, beside.body(waiting))
    assert pixels(asked) == pixels(picture(waiting.id))


def test_a_store_s_user_needs_no_more_than_the_docs_give_it(
    ends: TwoEnds, servers: list[StoreServer]
) -> None:
    text = (ROOT / "docs" / "security.md").read_text()
    found = re.search(r"^    ACL SETUSER ferry-bodies (.*(?:\n {8}.*)*)", text, re.M)
    assert found is not None
    rules = found[1].replace(">...", ">only-in-tests").replace("~ferry:", f"~{ends.prefix}:")
    admin = servers[0].redis
    admin.execute_command("ACL", "SETUSER", "ferry-bodies", *rules.split())
    admin.acl_log_reset()
    admin.config_resetstat()
    url = servers[0].url.replace("unix://", "unix://ferry-bodies:only-in-tests@")
    stores = BodyStores.of(f"{url}?db=1", ends.prefix)
    assert stores is not None
    beside = Stored(ends, ends.queue, servers[:1], stores, Budget(1), WorkerBodies(None, stores))
    bodies = StoredBodies(stores, Budget(BUDGET_BYTES), lambda _: stores.token)
    queue = RequestQueue(ends.redis, ends.keys, Limits(), None, bodies)
    ends.work.bodies = beside.worker
    waiting = [queue.push(picture(queue.new_id())) for _ in range(2)]
    wait_until(lambda: queue._shelf and queue._shelf._next_beat, 10, "it reads")  # type: ignore[union-attr]
    beside.answer(*beside.claim(2))
    assert all(pixels(each.wait()) == pixels(picture(each.id)) for each in waiting)
    (store,) = stores
    store.fail(RedisConnectionError("a test"))
    wait_until(lambda: not store.is_away, 10, "it is back")
    queue._courier.rest()

    assert admin.acl_log() == []
    used = {name.removeprefix("cmdstat_") for name in admin.info("commandstats")}
    allowed = {word[1:] for word in rules.split() if word[0] == "+"}
    assert allowed - used <= {"client|setname"}


def test_no_password_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    store = Store("redis://user:s3cret@127.0.0.1:1/2")
    assert store.ask(("PING",)) == []
    assert store.is_away
    store.refuse("no room")

    assert "127.0.0.1:1" in caplog.text
    assert "s3cret" not in caplog.text + repr(vars(store))


def test_the_token_goes_by_the_servers_whoever_asks() -> None:
    def token(urls: str) -> str:
        found = BodyStores.of(urls, "p")
        assert found is not None
        return found.token

    one, two = "redis://user:pw@h:6379/0", "redis://i"
    assert (
        token(f"{one},{two}") == token("redis://i:6379 redis://h") != token("redis://h/1,redis://i")
    )


def test_a_reader_says_so_again_before_it_is_forgotten() -> None:
    assert 3 * 1000 * stored.BEAT_SECONDS < stored.READER_MS
