"""A batch that waits leaves when its delay is over, also when Redis has nothing to do."""

from __future__ import annotations

from typing import Any

import pytest
from aged_queue import AgedQueue, Asked
from redis.exceptions import ResponseError

from shared.settings import Settings
from shared.wire.client import connect
from shared.wire.wire import Wire

TRIES = 5


def waited(queue: AgedQueue, delay_seconds: float) -> float:
    """Return how long the quickest of some requests was on the queue."""
    seconds = []
    for name in "abcdefgh"[:TRIES]:
        queue.push(Asked(name))
        while not (batch := queue.ends[0].claim(8, delay_seconds)):
            pass
        seconds.append(batch[0].queue_seconds)
    assert all(each >= delay_seconds for each in seconds)
    return min(seconds)


@pytest.mark.parametrize("delay_seconds", [0.0001, 0.01])
def test_an_idle_redis_does_not_prolong_the_delay(settings: Settings, delay_seconds: float) -> None:
    with connect(settings.redis_url) as redis:
        queue = AgedQueue(settings, redis)

        assert waited(queue, delay_seconds) < delay_seconds + 0.03

        queue.close()


def test_a_redis_that_does_not_let_itself_be_woken_only_prolongs_it(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with connect(settings.redis_url) as redis:
        queue = AgedQueue(settings, redis)
        really_send = Wire.send

        def send(wire: Wire, *commands: Any) -> None:
            if commands[0][:2] == ("CLIENT", "UNBLOCK"):
                raise ResponseError("NOPERM this user has no permissions to run 'client'")
            really_send(wire, *commands)

        monkeypatch.setattr(Wire, "send", send)

        assert waited(queue, 0.05) < 5.0

        queue.close()
