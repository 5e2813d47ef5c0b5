"""A courier without requests has no threads and no connections, until the next request."""

from __future__ import annotations

import threading

import pytest
from redis import Redis
from waiting import wait_until

from shared.courier import courier
from shared.messages import InferRequest, InferResult
from shared.request_queue.api_end import RequestQueue
from shared.request_queue.claimed import EncodedResults
from shared.request_queue.keys import QueueKeys
from shared.request_queue.limits import Limits
from shared.request_queue.model_statistics import encode_costs
from shared.request_queue.worker_end import WorkQueue
from shared.settings import Settings
from shared.wire.client import connect
from shared.wire.wire import open_wire


def threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("ferry-")}


def ask(queue: RequestQueue, keys: QueueKeys, redis: Redis) -> InferResult:
    """Have one request answered by an instance of our own."""
    waiting = queue.push(InferRequest(queue.new_id(), 1, (), (), 10.0))
    work = WorkQueue(open_wire(redis), keys, "instance", result_ttl_seconds=10.0)
    claimed = work.claim(1, 0.0)
    work.publish(claimed, EncodedResults([InferResult().encode()], encode_costs(claimed, [], 0.0)))
    return waiting.wait()


def test_it_rests_and_wakes_up_again(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(courier, "IDLE_SECONDS", 0.2)
    before = threads()

    with connect(settings.redis_url) as redis:
        keys = QueueKeys(settings.key_prefix, "m/1")
        queue = RequestQueue(redis, keys, Limits())
        for _ in range(3):
            clients = redis.info("clients")["connected_clients"]
            ask(queue, keys, redis)
            assert threads() - before
            wait_until(lambda: not threads() - before, 10, "its threads ended")
            wait_until(
                lambda n=clients: redis.info("clients")["connected_clients"] <= n,  # type: ignore[misc]
                10,
                "its connections are closed",
            )
