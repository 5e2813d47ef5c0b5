"""Jobs under load that never ends: a batch of theirs goes behind so many of others, no more."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count, islice
from typing import Any

import pytest
from aged_queue import AgedQueue, Asked, names_of

from shared.model_spec import QueuePolicy
from shared.request_queue.claimed import BATCHES_BETWEEN_BULK
from shared.settings import Settings
from shared.wire.client import connect

LEVELS = {"priority_levels": 3, "default_priority_level": 2}
POLICIES = LEVELS | {"queue_policies": (QueuePolicy(max_queue_size=100),) * 3}
DELAYED = {"max_queue_delay_seconds": 5.0}
LATE = 10.0
WHOLE, PIECE = 8, 2
"""Rows of a job's request and of a piece of many embeddings; a batch has eight."""


class UnderLoad:
    """A queue on which somebody's request stands before each claim: A, B, C, ..."""

    def __init__(self, queue: AgedQueue) -> None:
        self._queue = queue
        self._names = map(chr, count(ord("A")))

    def batches(self, claims: int, *, rows: int = 1) -> list[str]:
        """Claim so often; return the names in each batch."""
        found = []
        for name in islice(self._names, claims):
            self._queue.push(Asked(name, rows, age=LATE))
            batch = self._queue.take()
            self._queue.publish(batch)
            found.append(names_of(batch))
        return found


@contextmanager
def queue_of(settings: Settings, **fields: Any) -> Iterator[tuple[AgedQueue, UnderLoad]]:
    with connect(settings.redis_url) as redis:
        queue = AgedQueue(settings, redis, **fields)
        yield queue, UnderLoad(queue)
        queue.close()


def of_job(names: str, rows: int, level: int = 2) -> list[Asked]:
    """Return requests of a job, which wait behind the model's last level."""
    return [Asked(name, rows, LATE, level) for name in names]


@pytest.mark.parametrize("fields", [{}, LEVELS, POLICIES, DELAYED], ids=str)
def test_a_job_has_one_batch_behind_so_many_of_others(
    settings: Settings, fields: dict[str, Any]
) -> None:
    with queue_of(settings, **fields) as (queue, load):
        queue.push(*of_job("!#$", WHOLE, fields.get("priority_levels", 1) + 1))

        batches = load.batches(2 * BATCHES_BETWEEN_BULK + 2)

        turns = {place: names for place, names in enumerate(batches) if set(names) & set("!#$")}
        assert turns == {BATCHES_BETWEEN_BULK: "!", 2 * BATCHES_BETWEEN_BULK + 1: "#"}
        assert queue.batches()[0][-1] == "$"  # once nobody else waits it goes at once


def test_a_job_that_had_room_in_a_batch_of_others_has_no_turn_besides(settings: Settings) -> None:
    with queue_of(settings) as (queue, load):
        load.batches(BATCHES_BETWEEN_BULK - 1)
        queue.push(*of_job("!", PIECE))
        assert load.batches(1)[0][-1] == "!"
        queue.push(*of_job("#", WHOLE))

        batches = load.batches(BATCHES_BETWEEN_BULK + 1)

        assert [place for place, names in enumerate(batches) if "#" in names] == [len(batches) - 1]


def test_pieces_leave_the_room_in_the_batch_of_their_turn_to_others(settings: Settings) -> None:
    with queue_of(settings) as (queue, load):
        load.batches(BATCHES_BETWEEN_BULK, rows=WHOLE)
        queue.push(*of_job("!#", PIECE))

        (batch,) = load.batches(1)
        queue.push(*of_job("$", WHOLE))
        (behind,) = load.batches(1)

        assert (batch[:2], len(batch)) == ("!#", 3)
        assert behind != "$", "that was the turn of bulk"
