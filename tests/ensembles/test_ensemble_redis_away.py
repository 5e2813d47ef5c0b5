"""Redis goes away while an ensemble has requests under way: it comes back, and all are answered."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from hand_driven import HandDriven, chain, hand_driven, model
from own_valkey import OwnValkey
from waiting import wait_until

from shared.messages import InferRequest, Tensor
from shared.request_queue.api_end import RequestQueue
from shared.request_queue.keys import QueueKeys
from shared.request_queue.limits import Limits
from shared.request_queue.worker_end import WorkQueue
from shared.settings import Settings
from shared.wire.client import connect
from shared.wire.wire import open_wire

FIRST, SECOND = model("first"), model("second")


@pytest.fixture
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnValkey]:
    valkey = OwnValkey(tmp_path_factory.mktemp("v"))
    yield valkey
    valkey.server.stop()


@pytest.fixture
def own_settings(valkey: OwnValkey, settings: Settings) -> Settings:
    return replace(settings, redis_url=valkey.server.url)


@pytest.fixture
def driven(own_settings: Settings) -> Iterator[HandDriven]:
    with hand_driven(own_settings, chain("first", "second"), FIRST, SECOND) as driven:
        yield driven


def finish(driven: HandDriven) -> None:
    """Answer both steps of the one request that is under way."""
    driven.answer("first", driven.claim("first"))
    driven.answer("second", driven.claim("second"))


def refusals(driven: HandDriven) -> int:
    """Return how many commands Redis refused for want of memory."""
    found = driven.redis.info("errorstats").get("errorstat_OOM", {"count": 0})
    return int(found["count"])


def test_a_step_under_way_survives(driven: HandDriven, valkey: OwnValkey) -> None:
    waiting = driven.push(3.0)
    wait_until(lambda: driven.depth("first") == 1, 10, "the first step waits")
    valkey.kill()
    valkey.start_again()
    finish(driven)

    assert waiting.wait().outputs[0].array().tolist() == [[12.0, 12.0]]


def test_what_a_lost_reply_had_claimed_is_run(own_settings: Settings) -> None:
    redis, keys = connect(own_settings.redis_url), QueueKeys(own_settings.key_prefix, "chain/1")
    queue = RequestQueue(redis, keys, Limits())
    tensor = Tensor.of("in", np.full((1, 2), 3.0, np.float32))
    waiting = queue.push(InferRequest(queue.new_id(), 1, (tensor,)))
    same = WorkQueue(open_wire(redis), keys, "scheduler", result_ttl_seconds=60.0)
    assert same.claim(1, 0.0)  # as if the process had, and had not heard of it
    with hand_driven(own_settings, chain("first", "second"), FIRST, SECOND) as driven:
        other = driven.push(5.0)
        finish(driven)
        other.wait()
        assert not waiting.done.is_set()
        driven.hang_up()
        finish(driven)

        assert waiting.wait().outputs[0].array().tolist() == [[12.0, 12.0]]
        wait_until(lambda: driven.held() == 0, 10, "nothing is held")
    redis.close()


def test_what_a_redis_that_comes_back_empty_gets_again_runs_once(driven: HandDriven) -> None:
    waiting = driven.push(3.0)
    wait_until(lambda: driven.depth("first") == 1, 10, "the first step waits")
    driven.redis.flushall()
    driven.hang_up()
    wait_until(lambda: driven.held() == 1, 10, "the client's courier pushed it again")
    finish(driven)

    assert waiting.wait().outputs[0].array().tolist() == [[12.0, 12.0]]
    wait_until(lambda: driven.held() == 0, 10, "nothing is held")
    assert driven.depth("first") == driven.depth("second") == 0


def test_a_step_that_cannot_be_pushed_is_pushed_once_redis_takes_it(driven: HandDriven) -> None:
    waiting = driven.push(3.0)
    item = driven.claim("first")
    driven.answer("first", item, Tensor.of("y", np.full((1, 2), 6.0, np.float32)))
    wait_until(lambda: driven.depth("second") == 1, 10, "the second step waits")
    again = driven.push(4.0)
    item = driven.claim("first")
    driven.redis.config_set("maxmemory", "1")  # pushes are refused, what leaves memory is not
    driven.answer("first", item)
    wait_until(lambda: refusals(driven) > 0, 10, "the push was refused")
    driven.redis.config_set("maxmemory", "0")
    for _ in range(2):
        driven.answer("second", driven.claim("second"))

    assert waiting.wait().outputs[0].array().tolist() == [[12.0, 12.0]]
    assert again.wait().outputs[0].array().tolist() == [[16.0, 16.0]]
