"""An instance that has been idle for long asks Redis seldom, and misses nothing by it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from fake_backend import fake_spec
from redis.exceptions import ConnectionError as RedisConnectionError
from two_ends import TwoEnds
from waiting import wait_until

from shared.model_spec import ModelSpec
from shared.registry.registry import Registry
from shared.request_queue import worker_end
from shared.request_queue.claimed import Claimed
from shared.request_queue.keys import QueueKeys
from shared.request_queue.recovery import recover
from shared.request_queue.worker_end import WorkQueue
from shared.settings import Settings
from shared.wire.client import connect
from shared.wire.wire import open_wire
from worker.supervisor.recovery import Recovery

BLOCK_SECONDS = 3.0


class Idle:
    """The instance's end, idle from the beginning, whose claims run on a thread of their own."""

    def __init__(self, ends: TwoEnds) -> None:
        self.ends = ends
        self._reader, self._writer = os.pipe()
        self._thread = ThreadPoolExecutor(1)
        self.claim().result(10)  # the first one looks at the queue before it waits
        ends.work.wakeup = self._reader

    def claim(self) -> Future[list[Claimed]]:
        return self._thread.submit(self.ends.work.claim, 8, 0.0)

    def waiting(self) -> Future[list[Claimed]]:
        """Return a claim that waits for the bell."""
        claim = self.claim()
        wait_until(lambda: self.blocked() or claim.done(), 10, "it waits for the bell")
        assert not claim.done()
        return claim

    def blocked(self) -> bool:
        mine = self.ends.work._client_id
        clients = self.ends.redis.client_list()
        return any(int(c["id"]) == mine and "b" in c["flags"] for c in clients)

    def signal(self) -> None:
        os.write(self._writer, b"\x0f")

    def close(self) -> None:
        self.signal()
        self._thread.shutdown()
        os.close(self._reader)
        os.close(self._writer)


@pytest.fixture
def idle(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Idle]:
    monkeypatch.setattr(worker_end, "WORKLESS_SECONDS", 0.0)
    monkeypatch.setattr(worker_end, "WORKLESS_BLOCK_SECONDS", BLOCK_SECONDS)
    idle = Idle(request.getfixturevalue("ends"))
    yield idle
    idle.close()


def test_it_asks_redis_once_in_that_time(idle: Idle) -> None:
    began = time.monotonic()

    assert idle.waiting().result(20) == []

    assert time.monotonic() - began >= BLOCK_SECONDS - 0.5


def test_a_request_wakes_it_at_once(idle: Idle) -> None:
    claim = idle.waiting()
    (asked,) = idle.ends.push(1)

    (claimed,) = claim.result(10)

    assert claimed.id == asked.id
    assert claimed.queue_seconds < 0.5  # by itself it would look after three


def test_a_signal_ends_its_wait_at_once_and_the_next_claim_finds_what_came(idle: Idle) -> None:
    claim, began = idle.waiting(), time.monotonic()
    idle.signal()
    assert claim.result(10) == []
    assert time.monotonic() - began < BLOCK_SECONDS - 0.5

    asked = idle.ends.push(2)

    assert {each.id for each in idle.claim().result(10)} == {each.id for each in asked}


def test_it_learns_its_new_id_after_a_lost_connection(idle: Idle) -> None:
    before = idle.ends.work._client_id
    idle.ends.redis.client_kill_filter(_id=str(before))
    with pytest.raises(RedisConnectionError):
        idle.claim().result(10)

    idle.waiting()

    assert idle.ends.work._client_id != before


def test_what_a_dead_instance_left_waiting_for_company_is_found_at_once(
    settings: Settings, ends: TwoEnds
) -> None:
    ends.push(1)
    with connect(settings.redis_url) as redis:
        dead = open_wire(redis)
        keys = QueueKeys(settings.key_prefix, "m/1")
        queue = WorkQueue(dead, keys, "dead", result_ttl_seconds=60.0)
        redis.lpop(keys.bell)
        batch, wait_seconds = queue.claim_now(8, 60.0)
        assert (batch, wait_seconds > 0) == ([], True)

        recover(dead, keys, "dead", crashed=True, result_ttl_seconds=60.0)

        assert redis.llen(keys.bell) == 1
        dead.close()


def test_a_lost_connection_that_redis_keeps_takes_no_request(ends: TwoEnds) -> None:
    work = ends.work
    assert work.claim(8, 0.0) == []
    lost, work._wire = work._wire, work._wire.beside()
    work._wire.connections = lost.connections
    lost.send(work._idle_bell, work._claim(8, 0.0))
    clients, number = ends.redis.client_list, work._client_id
    wait_until(lambda: "b" in clients(client_id=[number])[0]["flags"], 10, "it waits at Redis")

    assert work.put_back() == (0, 0)

    asked = ends.push(1)
    assert [each.id for each in ends.claim(1)] == [each.id for each in asked]
    lost.close()


def of(name: str) -> ModelSpec:
    return fake_spec().model_copy(update={"name": name})


def test_the_supervisor_rings_for_what_nobody_rang_for(settings: Settings, idle: Idle) -> None:
    ends = idle.ends
    asked = ends.push(2)
    ends.redis.delete(ends.keys.bell)
    claim = idle.waiting()
    recovery = Recovery(ends.redis, Registry(ends.redis, settings.key_prefix), settings)

    recovery.ring_for_what_waits([fake_spec(), of("m")])

    assert {each.id for each in claim.result(BLOCK_SECONDS - 1)} == {each.id for each in asked}


def test_it_rings_for_no_empty_queue(settings: Settings, ends: TwoEnds) -> None:
    recovery = Recovery(ends.redis, Registry(ends.redis, settings.key_prefix), settings)

    recovery.ring_for_what_waits([of("m")])

    assert not ends.redis.exists(ends.keys.bell)
