"""Which requests leave together, when, and why: the dynamic batcher as Triton describes it.

The rules are those of Triton's dynamic batcher (docs/queue.md); each scenario pushes requests of
some age, and claims until nothing leaves any more. A request's name is a letter.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
from aged_queue import AgedQueue, Asked

from shared.model_spec import QueuePolicy
from shared.settings import Settings
from shared.wire.client import connect

WAITS = 5.0
"""A delay that no test waits for."""
LATE = 10.0
"""An age at which that delay is over."""


@contextmanager
def queue_of(settings: Settings, **fields: Any) -> Iterator[AgedQueue]:
    with connect(settings.redis_url) as redis:
        queue = AgedQueue(settings, redis, **fields)
        yield queue
        queue.close()


class Scenario(NamedTuple):
    """What is pushed under which fields, and the batches that leave at once, with their reasons.

    The model's batches have 8 rows. `left` are those that still wait for company.
    """

    what: str
    fields: dict[str, Any]
    asked: str | list[Asked]
    batches: list[str]
    reasons: dict[str, int]
    left: str = ""


def singles(names: str, age: float = 0.0) -> list[Asked]:
    """Return requests of one row each."""
    return [Asked(name, age=age) for name in names]


DELAYED = {"max_queue_delay_seconds": WAITS}
PREFERRED = DELAYED | {"preferred_batch_sizes": (2, 4)}
FOUR = DELAYED | {"preferred_batch_sizes": (4,)}
LEVELS = {"priority_levels": 3, "default_priority_level": 2}

SCENARIOS = [
    Scenario("without a delay what waits goes", {}, "abc", ["abc"], {"greedy": 1}),
    Scenario("bulk goes behind everybody", {}, [*singles("b"), Asked("j", level=2), *singles("a")],
             ["baj"], {"greedy": 1}),
    Scenario("and behind the last level, in what room a batch has", LEVELS,
             [Asked("j", level=4), Asked("k", rows=8, level=4), Asked("a", level=3)],
             ["aj", "k"], {"full": 2}),
    Scenario("up to the largest batch", {}, "abcdefghij", ["abcdefgh", "ij"],
             {"full": 1, "greedy": 1}),
    Scenario("rows are counted, not requests", {},
             [Asked("a", 3), Asked("b", 4), Asked("c", 2), Asked("d", 6)], ["ab", "cd"],
             {"full": 2}),
    Scenario("a request of a whole batch goes alone", {}, [Asked("a"), Asked("b", 8), Asked("c")],
             ["a", "b", "c"], {"full": 2, "greedy": 1}),
    Scenario("another shape is a boundary", {},
             [Asked("a"), Asked("b"), Asked("c", shape="z"), Asked("d")], ["ab", "c", "d"],
             {"shape": 2, "greedy": 1}),
    Scenario("a boundary lets the batch go within the delay", DELAYED,
             [Asked("a"), Asked("b", shape="z")], ["a"], {"shape": 1}, left="b"),
    Scenario("what does not fit lets the batch go within the delay", DELAYED,
             [Asked("a", 5), Asked("b", 4)], ["a"], {"full": 1}, left="b"),
    Scenario("an incomplete batch waits", DELAYED, "abc", [], {}, left="abc"),
    Scenario("a full one does not", DELAYED, "abcdefghi", ["abcdefgh"], {"full": 1}, left="i"),
    Scenario("once the oldest has waited the delay all go", DELAYED,
             [Asked("a", age=LATE), *singles("bcd")], ["abcd"], {"delay": 1}),
    Scenario("also when a later one is the oldest", DELAYED,
             [Asked("a"), Asked("b", age=LATE)], ["ab"], {"delay": 1}),
    Scenario("the oldest on any level counts", DELAYED | LEVELS,
             [Asked("a", level=1), Asked("b", level=3, age=LATE)], ["ab"], {"delay": 1}),
    Scenario("the lower level goes first", LEVELS,
             [Asked("a", 6, level=3), Asked("b", 3, level=2), Asked("c", 5, level=1)],
             ["cb", "a"], {"full": 1, "greedy": 1}),
    Scenario("a preferred size that is reached goes", PREFERRED, "ab", ["ab"], {"preferred": 1}),
    Scenario("the largest that is reached", PREFERRED, "abcde", ["abcd"], {"preferred": 1},
             left="e"),
    Scenario("a smaller one does not wait for the larger", PREFERRED, "abc", ["ab"],
             {"preferred": 1}, left="c"),
    Scenario("below all preferred sizes it waits", FOUR, "abc", [], {}, left="abc"),
    Scenario("more leave in several preferred sizes", FOUR, "abcdefghi", ["abcd", "efgh"],
             {"preferred": 2}, left="i"),
    Scenario("a preferred size is reached by whole requests", PREFERRED,
             [Asked("a"), Asked("b", 2), Asked("c")], ["abc"], {"preferred": 1}),
    Scenario("over the largest preferred size nothing is waited for", FOUR,
             [Asked("a", 3), Asked("b", 2)], ["a"], {"full": 1}, left="b"),
    Scenario("a request above the largest preferred size goes alone", FOUR,
             [Asked("a", 6), Asked("b")], ["a"], {"full": 1}, left="b"),
    Scenario("also when it is the only one", FOUR, [Asked("a", 6)], ["a"], {"full": 1}),
    Scenario("before another shape the preferred size goes first", FOUR,
             [*singles("abcde"), Asked("f", shape="z")], ["abcd", "e"],
             {"preferred": 1, "shape": 1}, left="f"),
    Scenario("once the delay is over all go, whatever is preferred", PREFERRED,
             singles("abcde", LATE), ["abcde"], {"delay": 1}),
    Scenario("up to the largest batch, though", PREFERRED, singles("abcdefghi", LATE),
             ["abcdefgh", "i"], {"full": 1, "delay": 1}),
    Scenario("the largest batch is full, also when it is preferred",
             DELAYED | {"preferred_batch_sizes": (8,)}, "abcdefgh", ["abcdefgh"], {"full": 1}),
    Scenario("without a delay the largest preferred size is the most",
             {"preferred_batch_sizes": (2, 4)}, "abcdefg", ["abcd", "efg"],
             {"full": 1, "greedy": 1}),
    Scenario("without a delay a request above it goes alone", {"preferred_batch_sizes": (4,)},
             [Asked("a"), Asked("b", 6), Asked("c")], ["a", "b", "c"], {"full": 2, "greedy": 1}),
    Scenario("without batches each goes alone", {"max_batch_size": 0}, "ab", ["a", "b"],
             {"full": 2}),
]  # fmt: skip


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.what)
def test_batches_leave_by_the_rules(settings: Settings, scenario: Scenario) -> None:
    with queue_of(settings, **scenario.fields) as queue:
        asked = scenario.asked
        queue.push(*(singles(asked) if isinstance(asked, str) else asked))

        batches, wait_seconds = queue.batches()

        assert batches == scenario.batches
        assert queue.reasons() == scenario.reasons
        left = [queue.waiting(level) for level in range(1, queue.spec.levels + 1)]
        assert left[0] == (scenario.left, "")
        assert all(each == ("", "") for each in left[1:])
        assert (wait_seconds < 0) is (scenario.left == "")
        assert wait_seconds <= WAITS


def test_the_wait_is_the_delay_less_the_age_of_the_oldest(settings: Settings) -> None:
    with queue_of(settings, max_queue_delay_seconds=9.0) as queue:
        queue.push(Asked("a", age=2.0), Asked("b", age=5.0), Asked("c"))

        assert queue.claim() == pytest.approx(3.5, abs=0.5)


def test_what_has_been_in_a_crash_neither_waits_nor_has_company(settings: Settings) -> None:
    with queue_of(settings, **DELAYED) as queue:
        queue.push(*singles("abc", LATE))
        assert len(queue.take()) == 3
        queue.crash()
        queue.push(Asked("d"))

        batches, _ = queue.batches()

        assert batches == ["a", "b", "c"]
        assert queue.reasons() == {"delay": 1, "retry": 3}


def test_sizes_that_memory_does_not_hold_are_not_waited_for(settings: Settings) -> None:
    with queue_of(settings, **FOUR) as queue:
        queue.push(*singles("abcde"))

        batches, _ = queue.batches(max_rows=3)

        assert batches == ["abc"]
        assert queue.reasons() == {"full": 1}


def test_cancelled_requests_are_no_boundary_and_take_no_seats(settings: Settings) -> None:
    with queue_of(settings, **FOUR) as queue:
        gone = [Asked("x"), Asked("y", shape="z"), Asked("w", 8)]
        queue.push(Asked("a"), gone[0], Asked("b"), gone[1], Asked("c"), gone[2], Asked("d"))
        queue.redis.delete(*(queue.keys.body + each.id for each in gone))

        batches, _ = queue.batches()

        assert batches == ["abcd"]


def test_what_stays_behind_a_preferred_batch_keeps_its_bytes_and_rings_the_bell(
    settings: Settings,
) -> None:
    with queue_of(settings, **FOUR) as queue:
        queue.push(*singles("abcdef"))
        whole = int(queue.redis.get(queue.keys.bytes) or 0)
        queue.redis.delete(queue.keys.bell)

        assert len(queue.take()) == 4

        assert int(queue.redis.get(queue.keys.bytes) or 0) == whole // 3
        assert queue.redis.llen(queue.keys.bell) == 1
        assert queue.batches() == ([], pytest.approx(WAITS - 1.5, abs=1.5))
        queue.pass_time(LATE)
        assert queue.batches()[0] == ["ef"]
        assert not queue.redis.exists(queue.keys.bytes)


def test_expired_requests_leave_while_the_others_wait(settings: Settings) -> None:
    with queue_of(settings, **DELAYED) as queue:
        queue.push(Asked("a"), Asked("b", deadline=1.0, age=LATE), Asked("c"))

        assert queue.batches()[0] == []

        assert queue.waiting() == ("ac", "")
        assert queue.stats()["inference_stats"]["fail"]["count"] == 1
        queue.pass_time(LATE)
        assert queue.batches()[0] == ["ac"]
        assert not queue.redis.exists(queue.keys.bytes)


def test_each_level_takes_as_many_requests_as_its_policy_says(settings: Settings) -> None:
    fields = LEVELS | {
        "queue_policies": (QueuePolicy(max_queue_size=1), QueuePolicy(), QueuePolicy())
    }
    with queue_of(settings, **fields) as queue:
        assert queue.push(Asked("a", level=1), Asked("b", level=1)) == ["queued", "full 1"]
        assert queue.push(Asked("c", level=2), Asked("d", level=2)) == ["queued", "queued"]
        queue.batches()
        assert queue.push(Asked("e", level=1)) == ["queued"]


def test_all_levels_together_take_as_many_as_the_setting_says(settings: Settings) -> None:
    fields = LEVELS | {"queue_policies": (QueuePolicy(max_queue_size=5),) * 3}
    with queue_of(settings, **fields) as queue:
        queue.limits = queue.limits._replace(requests=2)

        found = queue.push(Asked("a", level=1), Asked("b", level=2), Asked("c", level=3))

        assert found == ["queued", "queued", "full 2"]
