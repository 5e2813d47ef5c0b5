"""API keys take turns within a level: who has a thousand requests waiting holds up nobody else."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import count
from random import Random
from typing import Any

import pytest
from aged_queue import PROCESS, AgedQueue
from redis import Redis

from shared.messages import InferRequest
from shared.request_queue.commands import MAX_ATTEMPTS, as_push, cancel_command, push_command
from shared.settings import Settings
from shared.ticket import ASYNCHRONOUS
from shared.wire.client import connect

ROWS = 8
"""Of a batch, and so of a turn."""


@pytest.fixture
def redis(settings: Settings) -> Iterator[Redis]:
    with connect(settings.redis_url) as client:
        yield client


class Keys:
    """The queue of a model whose requests come with API keys, one letter each."""

    def __init__(self, app: Settings, redis: Redis, **fields: Any) -> None:
        self.queue = AgedQueue(app, redis, **{"max_batch_size": ROWS} | fields)
        self._numbers = count()
        self._owners: dict[str, str] = {}

    def push(self, *owners: str, rows: int = 1, **fields: Any) -> None:
        """Push a request of each of these keys in one script; `-` is none."""
        self.push_all([(owner, rows) for owner in owners], **fields)

    def push_all(
        self,
        asked: Sequence[tuple[str, int]],
        level: int = 1,
        process: str = PROCESS,
        **fields: Any,
    ) -> list[str]:
        """Push requests of these keys and rows; returns their ids."""
        keys = self.queue.keys if level <= self.queue.spec.levels else self.queue.keys.with_bulk
        pushes = []
        for owner, rows in asked:
            request_id = f"{process}{next(self._numbers):024x}"
            self._owners[request_id] = owner
            request = InferRequest(
                request_id, rows, (), priority=level, owner=owner.strip("-"), **fields
            )
            pushes.append(as_push(request, keys, self.queue.limits))
        self.queue.wire.send(push_command(keys, self.queue.limits, pushes))
        assert set(self.queue.wire.reply()) == {b"queued"}
        return [push.id for push in pushes]

    def cancel(self, request_id: str) -> None:
        """Take a request back."""
        self.queue.wire.send(cancel_command(self.queue.keys, "cancelled", [request_id]))
        self.queue.wire.reply()

    def waiting(self, level: int = 1) -> str:
        """Return the keys of who waits on a level, in their order."""
        ids = self.ids(level)
        return "".join(self._owners[request_id] for request_id in ids)

    def ids(self, level: int = 1) -> list[str]:
        found = self.queue.redis.lrange(f"{self.queue.keys.queue}{level}", 0, -1)
        return [raw[-32:].decode() for raw in found]

    def take(self) -> str:
        """Claim a batch; return the keys in it."""
        return "".join(self._owners[item.id] for item in self.queue.take())


@pytest.fixture
def keys(settings: Settings, redis: Redis) -> Iterator[Keys]:
    keys = Keys(settings, redis)
    yield keys
    keys.queue.close()


def test_a_thousand_of_one_key_delay_anothers_by_a_batch(keys: Keys) -> None:
    for _ in range(10):
        keys.push(*100 * "a")
    assert keys.take() == 8 * "a"

    keys.push("b")

    assert keys.take() == 8 * "a"
    assert keys.take() == "b" + 7 * "a"


def test_without_keys_they_are_served_as_they_come_and_nothing_is_kept(keys: Keys) -> None:
    for _ in range(3):
        keys.push(*10 * "-")
    ids = keys.ids()
    keys.push("-")

    assert keys.ids()[:-1] == ids
    assert not keys.queue.redis.exists(keys.queue.keys.turns)


def test_each_turn_is_a_batch_so_that_other_shapes_break_up_none(keys: Keys) -> None:
    keys.push(*16 * "a", signature=b"a" * 8)
    keys.push(*16 * "b", signature=b"b" * 8)

    assert [keys.take() for _ in range(4)] == [8 * "a", 8 * "b", 8 * "a", 8 * "b"]


def test_turns_are_counted_in_rows(keys: Keys) -> None:
    keys.push(*8 * "a", rows=4)
    keys.push(*16 * "b")

    assert keys.waiting() == "aa" + 8 * "b" + "aa" + 8 * "b" + "aaaa"


def test_who_was_away_has_saved_up_no_turns(keys: Keys) -> None:
    keys.push("b", *64 * "a")
    for _ in range(6):
        keys.take()

    keys.push(*24 * "b")

    taken = "".join(keys.take() for _ in range(4))
    assert taken.count("b") == 16


def test_who_was_served_while_nobody_else_was_there_owes_nothing(keys: Keys) -> None:
    keys.push(*64 * "a")
    for _ in range(8):
        keys.take()

    keys.push(*16 * "b")
    keys.push(*16 * "a")

    assert [keys.take() for _ in range(4)] == [8 * "b", 8 * "a", 8 * "b", 8 * "a"]


def test_who_is_alone_costs_one_field_until_another_comes(keys: Keys, redis: Redis) -> None:
    turns = keys.queue.keys.turns
    for _ in range(2):
        keys.push(*9 * "a")
        assert redis.hkeys(turns) == [b"lone"]

    keys.push("b")
    assert keys.waiting() == 8 * "a" + "b" + 10 * "a"
    assert b"lone" not in redis.hkeys(turns)


def test_two_keys_in_one_script_take_turns_as_well(keys: Keys) -> None:
    keys.push(*24 * "a", *3 * "b", *2 * "a")

    assert keys.waiting() == 8 * "a" + "bbb" + 18 * "a"


def test_what_a_crash_puts_back_goes_first(keys: Keys) -> None:
    keys.push(*24 * "a", "b")
    keys.take()
    keys.queue.crash()

    keys.push("c")

    assert keys.waiting() == 8 * "a" + "bc" + 16 * "a"


@pytest.mark.parametrize("level", [1, 2, 3], ids=["urgent", "default", "bulk"])
def test_each_level_has_turns_of_its_own(settings: Settings, redis: Redis, level: int) -> None:
    keys = Keys(settings, redis, priority_levels=2, default_priority_level=2)
    for each in (1, 2, 3):
        keys.push(*20 * "a", level=each)

    keys.push("b", level=level)

    for each in (1, 2, 3):
        assert keys.waiting(each) == (8 * "a" + "b" + 12 * "a" if each == level else 20 * "a")
    keys.queue.close()


@pytest.mark.parametrize("small", ["a", "b", "ab", "-"])
def test_small_requests_that_find_nothing_waiting_leave_the_turns_of_large_ones(
    keys: Keys, small: str
) -> None:
    bulk = keys.queue.spec.levels + 1
    keys.push(*40 * "a", level=bulk)

    keys.push(*small)
    keys.take()
    keys.push("b", level=bulk)

    assert keys.waiting(bulk).index("b") <= ROWS


def test_asynchronous_requests_take_turns_with_the_others(keys: Keys) -> None:
    keys.push(*20 * "a", process=ASYNCHRONOUS)
    keys.push("b")
    keys.push("b", process=ASYNCHRONOUS)

    assert keys.waiting() == 8 * "a" + "bb" + 12 * "a"


def test_requests_without_a_key_stand_where_they_came(keys: Keys) -> None:
    keys.push(*12 * "a", "-", "b", "-")

    assert keys.waiting() == 8 * "a" + "b" + 4 * "a" + "--"


class Reference:
    """The order of turns by a list that is searched from its beginning."""

    def __init__(self) -> None:
        self.queue: list[tuple[int, str]] = []
        self._begin()

    def _begin(self) -> None:
        self._now = self._most = 1.0
        self._given: dict[str, float] = {}

    def push(self, asked: Sequence[tuple[str, int]], ids: Sequence[str]) -> None:
        """Take requests of these keys and rows, which come in one script."""
        is_new = not self.queue
        if is_new:
            self._begin()
        for (owner, rows), request_id in zip(asked, ids, strict=True):
            turn = 0 if is_new and len(ids) == 1 else self._turn(owner, rows)
            place = next((i for i, (other, _) in enumerate(self.queue) if other > turn), None)
            self.queue.insert(len(self.queue) if place is None else place, (turn, request_id))

    def _turn(self, owner: str, rows: int) -> int:
        given = self._given.get(owner, 1.0)
        if math.floor(given) < math.floor(self._most):
            self._now = max(self._now, self.queue[0][0] if self.queue else math.floor(self._most))
            given = max(given, self._now)
        self._given[owner] = given + rows / ROWS
        self._most = max(self._most, self._given[owner])
        return math.floor(given)


def random_steps(keys: Keys, reference: Reference, chance: Random, owners: str) -> None:
    """Push, claim, crash and cancel in any order; the queue stays the list's at each step."""
    crashes = Counter[str]()
    for _ in range(60):
        what = chance.choices(["push", "take", "crash", "cancel"], [5, 4, 1, 1])[0]
        if what == "push":
            count = chance.randint(1, 9)
            asked = [(chance.choice(owners), chance.choice([1, 1, 2, 7])) for _ in range(count)]
            reference.push(asked, keys.push_all(asked))
        elif reference.queue and what == "cancel":
            gone = chance.choice(reference.queue)
            keys.cancel(gone[1])
            reference.queue.remove(gone)
        elif reference.queue:
            batch = keys.queue.take()
            taken, reference.queue = reference.queue[: len(batch)], reference.queue[len(batch) :]
            assert [item.id for item in batch] == [request_id for _, request_id in taken]
            if what == "crash":
                keys.queue.crash()
                crashes.update(request_id for _, request_id in taken)
                back = [each for each in taken if crashes[each[1]] < MAX_ATTEMPTS]
                reference.queue = back + reference.queue
            else:
                keys.queue.publish(batch)
        assert keys.ids() == [request_id for _, request_id in reference.queue]


@pytest.mark.parametrize("owners", ["aaabbc", 30 * "a" + "b"], ids=["mixed", "mostly one's"])
def test_the_order_is_that_of_a_list_searched_from_its_beginning(
    settings: Settings, redis: Redis, owners: str
) -> None:
    for seed in range(25):
        keys = Keys(settings, redis)
        redis.delete(*redis.keys(f"{settings.key_prefix}*") or ["none"])
        random_steps(keys, Reference(), Random(seed), owners)
        keys.queue.close()
