"""Whatever happens in whatever order, no request is lost and none is answered twice.

Hypothesis makes up the order: the steps are the rules, what must always hold the invariants.
"""

from __future__ import annotations

import re
import time

from hypothesis import HealthCheck, settings
from hypothesis import strategies as some
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from queue_model import DOCUMENTED, SHORT_SECONDS, QueueModel

from shared.redis_connection import connect
from shared.request_queue import MAX_ATTEMPTS

DATABASE = 9  # the queue's memory is lost in it, and other tests' must stay
slots = some.sampled_from([0, 1])
batch_rows = some.sampled_from([1, 2, 4])
requests = some.fixed_dictionaries(
    {
        "level": some.sampled_from([1, 1, 2]),
        "rows": some.sampled_from([1, 1, 2]),
        "signature": some.sampled_from([b"a" * 8, b"a" * 8, b"b" * 8]),
        "size": some.sampled_from([40, 150, 500]),
        "short": some.sampled_from([False, False, False, True]),
        "detached": some.sampled_from([False, False, True]),
    }
)


class Queue(RuleBasedStateMachine):
    """The rules are what can happen; the model knows what each must do."""

    url = ""

    def __init__(self) -> None:
        super().__init__()
        self.client = connect(f"{self.url}?db={DATABASE}")
        self.model = QueueModel(self.client)

    @rule(asked=some.lists(requests, min_size=1, max_size=3))
    def push(self, asked) -> None:
        self.model.push([self.model.new_push(**each) for each in asked])

    @rule()
    def push_again(self) -> None:
        self.model.resume()

    @rule(slot=slots, max_rows=batch_rows)
    def claim(self, slot: int, max_rows: int) -> None:
        if not self.model.held[slot]:
            self.model.claim(slot, max_rows)

    @precondition(lambda self: any(self.model.held))
    @rule(slot=slots)
    def publish(self, slot: int) -> None:
        slot = slot if self.model.held[slot] else 1 - slot
        self.model.publish(slot)
        self.model.held[slot] = []

    @rule(slot=slots, done=some.integers(0, 3), max_rows=batch_rows)
    def connection_is_lost(self, slot: int, done: int, max_rows: int) -> None:
        self.model.lose_connection(slot, done, max_rows)

    @precondition(lambda self: any(self.model.held))
    @rule(slot=slots)
    def instance_dies(self, slot: int) -> None:
        self.model.die(slot if self.model.held[slot] else 1 - slot)

    @precondition(lambda self: self.model.unrecovered)
    @rule(supervisors=some.sampled_from([1, 2]))
    def supervisors_recover(self, supervisors: int) -> None:
        for name in self.model.unrecovered:
            for _ in range(supervisors):
                self.model.put_back(name, crashed=True)
        self.model.unrecovered = []

    @precondition(lambda self: any(self.model.held))
    @rule(slot=slots)
    def living_instance_is_taken_for_dead(self, slot: int) -> None:
        self.model.put_back(self.model.names[slot], crashed=True)

    @rule()
    def redis_loses_its_memory(self) -> None:
        self.model.forget()

    @rule()
    def answers_are_collected(self) -> None:
        self.model.collect()

    @rule()
    def answers_are_lost_on_their_way(self) -> None:
        self.model.collect(reply_is_lost=True)
        self.model.resume()

    @precondition(lambda self: self.model.asked)
    @rule(picks=some.lists(some.integers(0, 99), min_size=1, max_size=3), kind=some.booleans())
    def requests_are_cancelled(self, picks: list[int], kind: bool) -> None:
        ids = list(self.model.asked)
        self.model.cancel(sorted({ids[-1 - n % len(ids)] for n in picks}), only_waiting=kind)

    @rule()
    def deadlines_pass(self) -> None:
        time.sleep(2 * SHORT_SECONDS)

    @invariant()
    def every_open_request_can_still_be_answered(self) -> None:
        listed = {ticket.id for ticket in self.queued() + self.in_flight()}
        for request_id, asked in self.model.asked.items():
            if not asked.short:
                stored = self.client.exists(self.model.keys.body + request_id) == 1
                assert stored is not asked.closed
                assert asked.closed or request_id in listed, "lost"

    @invariant()
    def the_bytes_are_those_of_what_waits(self) -> None:
        queued = self.queued()
        assert int(self.client.get(self.model.keys.bytes) or 0) == sum(
            ticket.body_bytes for ticket in queued
        )
        for ticket in queued:
            assert ticket.body_bytes == len(self.model.asked[ticket.id].push.body)

    @invariant()
    def nobody_is_tried_more_than_three_times(self) -> None:
        assert all(t.attempts < MAX_ATTEMPTS for t in self.queued() + self.in_flight())

    @invariant()
    def what_waits_has_rung_the_bell(self) -> None:
        rung = self.client.llen(self.model.keys.bell)
        assert rung <= 1
        self.model.bell_lost = self.model.bell_lost and not rung
        assert rung or self.model.bell_lost or not self.model.live(self.queued())

    @invariant()
    def what_was_closed_unanswered_is_counted(self) -> None:
        model = self.model
        counted = {
            key.decode(): int(n) for key, n in self.client.hgetall(model.keys.counts).items()
        }
        assert counted.pop("expired", 0) <= sum(asked.short for asked in model.asked.values())
        assert counted == {key: number for key, number in model.counts.items() if number}
        assert self.client.llen(model.keys.dead) == model.counts["dead"]

    @invariant()
    def only_documented_keys_exist_and_expire_as_documented(self) -> None:
        for raw in self.client.scan_iter(count=1000):
            key = raw.decode()
            (expires,) = [expires for pattern, expires in DOCUMENTED if re.fullmatch(pattern, key)]
            lifetime_ms = self.client.pttl(key)
            assert lifetime_ms == -2 or (lifetime_ms == -1) is expires.startswith("no")

    def teardown(self) -> None:
        """Let everything come to rest: each who still waits is answered, and nothing stays."""
        model = self.model
        for slot in (0, 1):
            model.die(slot)
        self.supervisors_recover(supervisors=2)
        while self.queued():
            model.claim(0, 4)
            model.publish(0)
        model.collect()
        waiting = [asked for asked in model.waiting.values() if not asked.short]
        assert not waiting, "still waiting at the end"
        assert not self.client.exists(model.keys.bytes)
        model.wire.close()
        self.client.close()

    def queued(self):
        return self.model.queue(1) + self.model.queue(2)

    def in_flight(self):
        names = [*self.model.names, *self.model.unrecovered]
        return [ticket for name in names for ticket in self.model.in_flight(name)]


def test_nothing_is_lost_and_nothing_is_answered_twice(redis_url: str) -> None:
    Queue.url = redis_url
    run_state_machine_as_test(
        Queue,
        settings=settings(
            max_examples=150,
            stateful_step_count=30,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_the_model_knows_every_documented_key() -> None:
    assert len(DOCUMENTED) == 10
