"""Whatever happens in whatever order, nobody waits for an answer that nobody computes.

Hypothesis makes up the order of steps, which are the real scripts on a real Valkey.
"""

from __future__ import annotations

import os

from cached_queue import CachedQueue
from hypothesis import HealthCheck, settings
from hypothesis import strategies as some
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from shared.errors import ModelFailed
from shared.request_queue.claimed import Claimed
from shared.wire.client import connect

EXAMPLES = int(os.environ.get("STATE_EXAMPLES", "50"))
"""`STATE_EXAMPLES=1000` looks for longer, as once a night."""
STEPS = 40
DATABASE = 10  # its memory is lost, and other tests' must stay
INSTANCES = ["i", "j"]
instances = some.sampled_from(INSTANCES)


class Cached(RuleBasedStateMachine):
    """`asked` are the questions of all requests by id."""

    url = ""

    def __init__(self) -> None:
        super().__init__()
        self.client = connect(f"{self.url}?db={DATABASE}")
        self.client.flushdb()
        self.queue = CachedQueue(self.client, "model", levels=2)
        self.asked: dict[str, str] = {}
        self.held: dict[str, list[Claimed]] = {name: [] for name in INSTANCES}

    def teardown(self) -> None:
        self.client.close()

    @rule(
        questions=some.lists(some.sampled_from("aaab"), min_size=1, max_size=4),
        level=some.sampled_from([1, 2, 2]),
        timeout=some.sampled_from([1000.0, 1000.0, 0.0]),
    )
    def some_are_pushed(self, questions: list[str], level: int, timeout: float) -> None:
        pushes = [self.queue.new_push(each, level, timeout) for each in questions]
        self.queue.push(pushes)
        self.asked |= {push.id: each for push, each in zip(pushes, questions, strict=True)}

    @rule(name=instances, max_rows=some.sampled_from([1, 4]))
    def claim(self, name: str, max_rows: int) -> None:
        if not self.held[name]:
            self.held[name] = self.queue.claim(name, max_rows)

    @precondition(lambda self: any(self.held.values()))
    @rule(name=instances, fails=some.sampled_from([False, False, True]))
    def publish(self, name: str, fails: bool) -> None:
        error = ModelFailed("cannot") if fails else None
        self.queue.publish(self.held[name], name, error)
        self.held[name] = []

    @precondition(lambda self: any(self.held.values()))
    @rule(name=instances, crashed=some.booleans(), is_alive=some.booleans())
    def put_back(self, name: str, crashed: bool, is_alive: bool) -> None:
        self.queue.crash(name, crashed=crashed)
        if not is_alive:
            self.held[name] = []

    @precondition(lambda self: self.asked)
    @rule(picks=some.lists(some.integers(0, 99), min_size=1, max_size=3), waiting=some.booleans())
    def some_are_cancelled(self, picks: list[int], waiting: bool) -> None:
        ids = list(self.asked)
        self.queue.cancel(*{ids[pick % len(ids)] for pick in picks}, only_waiting=waiting)

    @precondition(lambda self: self.asked)
    @rule(pick=some.integers(0, 99))
    def a_body_expires(self, pick: int) -> None:
        """As it does when its deadline has long passed: of one that waits, nothing is left."""
        request_id = list(self.asked)[pick % len(self.asked)]
        if request_id not in self.queue.queued():
            self.client.delete(self.queue.keys.body + request_id)

    @rule()
    def answers_are_forgotten(self) -> None:
        self.client.delete(*self.queue.keys.answers)

    @rule()
    def memory_is_lost(self) -> None:
        open_ones = self.open()
        self.client.flushdb()
        for request_id, question in open_ones.items():
            push = self.queue.new_push(question)._replace(id=request_id)
            self.queue.push([push])

    @invariant()
    def whoever_is_open_will_be_answered(self) -> None:
        """Its ticket is on a queue or in flight, or that of the one that it follows is."""
        under_way = set(self.queue.queued())
        for name in INSTANCES:
            tickets = self.client.lrange(self.queue.keys.inflight + name, 0, -1)
            under_way |= {ticket[-32:].decode() for ticket in tickets}
        for request_id in self.open():
            assert request_id in under_way or self.leader_of(request_id) in under_way

    @invariant()
    def answers_are_to_the_question(self) -> None:
        for request_id, question in self.asked.items():
            result = self.queue.result(request_id)
            if result is not None and result.error is None:
                assert self.queue.letter(request_id) == question

    @invariant()
    def followers_are_counted(self) -> None:
        lists = [self.client.lrange(key, 1, -1) for key in self.client.scan_iter("*:asked:*")]
        counted = int(self.client.get(f"{self.queue.keys.tag}followed") or 0)
        assert counted == 10 * sum(map(len, lists))

    def open(self) -> dict[str, str]:
        keys = self.queue.keys
        return {each: of for each, of in self.asked.items() if self.client.exists(keys.body + each)}

    def leader_of(self, request_id: str) -> str:
        digest = self.client.get(f"{self.queue.keys.tag}digest:{request_id}").decode()
        return self.client.lindex(f"{self.queue.keys.tag}asked:{digest}", 0)[-32:].decode()


def test_nobody_waits_for_an_answer_that_nobody_computes(redis_url: str) -> None:
    Cached.url = redis_url
    run_state_machine_as_test(
        Cached,
        settings=settings(
            max_examples=EXAMPLES, stateful_step_count=STEPS, deadline=None, database=None,
            derandomize=True, suppress_health_check=list(HealthCheck),
        ),
    )  # fmt: skip
