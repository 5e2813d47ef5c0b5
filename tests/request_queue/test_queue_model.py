"""Whatever happens in whatever order, no request is lost and none is answered twice.

Hypothesis makes up the order: the steps are the rules, what must always hold the invariants.
"""

from __future__ import annotations

import os
import re
import struct
from collections import Counter

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as some
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from queue_model import QueueModel
from queue_reading import DOCUMENTED, FAILING_SIZE, Seen, lifetimes

from shared.request_queue.commands import MAX_ATTEMPTS
from shared.request_queue.limits import Batching
from shared.ticket import DELAY, REJECT
from shared.wire.client import connect

EXAMPLES = int(os.environ.get("STATE_EXAMPLES", "50"))
"""`STATE_EXAMPLES=1000` looks for longer, as once a night."""
STEPS = 40
DATABASE = 9  # the queue's memory is lost in it, and other tests' must stay
TERMS = struct.Struct("<BdI")
NO_TERMS, REJECTED, DELAYED = b"", TERMS.pack(REJECT, 900.0, 0), TERMS.pack(DELAY, 900.0, 0)
slots = some.sampled_from([0, 1])
batch_rows = some.sampled_from([1, 2, 4])
requests = some.fixed_dictionaries(
    {
        "priority": some.sampled_from([1, 1, 2]),
        "rows": some.sampled_from([1, 1, 2]),
        "signature": some.sampled_from([b"a" * 8] * 4 + [b"b" * 8]),
        "size": some.sampled_from([40, 40, FAILING_SIZE, 150, 500]),
        "asynchronous": some.sampled_from([False, False, True]),
        "terms": some.sampled_from([NO_TERMS, NO_TERMS, REJECTED, DELAYED]),
        "owner": some.sampled_from(["", "", "a", "a", "b"]),
    }
)


class Queue(RuleBasedStateMachine):
    """The rules are what can happen; the model knows what each must do."""

    url = ""
    batching = Batching()
    has_keys = False

    def __init__(self) -> None:
        super().__init__()
        self.client = connect(f"{self.url}?db={DATABASE}")
        self.model = QueueModel(self.client, self.batching)

    @initialize(asked=some.lists(requests, min_size=2, max_size=4))
    def begin(self, asked) -> None:
        self.push(asked)

    @rule(asked=some.lists(requests, min_size=1, max_size=3))
    def some_are_pushed(self, asked) -> None:
        self.push(asked)

    def push(self, asked) -> None:
        if not self.batching.has_policies:
            asked = [each | {"terms": NO_TERMS} for each in asked]
        if not self.has_keys:
            asked = [each | {"owner": ""} for each in asked]
        self.model.push([self.model.new_push(**each) for each in asked])

    @precondition(lambda self: not all(self.model.held))
    @rule(slot=slots, max_rows=batch_rows, delay_seconds=some.sampled_from([0.0, 0.0, 1000.0]))
    def claim(self, slot: int, max_rows: int, delay_seconds: float) -> None:
        self.model.claim(1 - slot if self.model.held[slot] else slot, max_rows, delay_seconds)

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
    @rule(slot=slots, is_alive=some.booleans())
    def instance_is_taken_for_dead(self, slot: int, is_alive: bool) -> None:
        slot = slot if self.model.held[slot] else 1 - slot
        if is_alive:
            self.model.put_back_by_others(self.model.names[slot], crashed=True)
        else:
            self.model.die(slot)

    @precondition(lambda self: any(self.model.held))
    @rule(slot=slots, count=some.integers(1, 3))
    def a_device_is_lost(self, slot: int, count: int) -> None:
        slot = slot if self.model.held[slot] else 1 - slot
        suspects = [item.id for item in self.model.held[slot]][:count]
        self.model.lose_device(slot, suspects)

    @precondition(lambda self: self.model.unrecovered)
    @rule(supervisors=some.sampled_from([1, 2]))
    def supervisors_recover(self, supervisors: int) -> None:
        for name in self.model.unrecovered:
            for _ in range(supervisors):
                self.model.put_back_by_others(name, crashed=True)
        self.model.unrecovered = []

    @rule(memory_is_lost=some.booleans())
    def redis_is_back(self, memory_is_lost: bool) -> None:
        if memory_is_lost:
            self.model.forget()
        self.model.resume()

    @rule(reply_is_lost=some.booleans())
    def answers_are_collected(self, reply_is_lost: bool) -> None:
        self.model.collect(reply_is_lost=reply_is_lost)
        if reply_is_lost:
            self.model.resume()

    @precondition(lambda self: self.model.asked)
    @rule(pick=some.integers(0, 99), only_waiting=some.booleans())
    def two_requests_are_cancelled(self, pick: int, only_waiting: bool) -> None:
        ids = list(self.model.asked)
        two = {ids[pick % len(ids)], ids[-1 - pick // 2 % len(ids)]}
        self.model.cancel(sorted(two), "cancelled", only_waiting=only_waiting)

    @precondition(lambda self: self.model.asked)
    @rule(pick=some.integers(0, 99), seen_by_api=some.booleans(), body_expires=some.booleans())
    def a_deadline_passes(self, pick: int, seen_by_api: bool, body_expires: bool) -> None:
        request_id = list(self.model.asked)[-1 - pick % len(self.model.asked)]
        self.model.pass_deadline(request_id, body_expires=body_expires)
        if seen_by_api:
            self.model.cancel([request_id], "expired", only_waiting=False)

    @precondition(lambda self: self.batching.has_policies and self.model.asked)
    @rule(pick=some.integers(0, 99), seen_by_api=some.booleans())
    def the_time_on_the_queue_is_over(self, pick: int, seen_by_api: bool) -> None:
        request_id = list(self.model.asked)[-1 - pick % len(self.model.asked)]
        self.model.pass_queue_time(request_id)
        if seen_by_api:
            self.model.cancel([request_id], "rejected", only_waiting=True)

    @invariant()
    def nobody_waits_for_what_is_closed(self) -> None:
        head = (self.client.lindex(self.model.keys.order, 0) or b"").decode()
        assert not head or not self.model.asked[head].closed or head in self.model.expired

    @invariant()
    def everything_holds(self) -> None:
        seen = self.model.look()
        self.every_open_request_can_still_be_answered(seen)
        self.the_bytes_are_those_of_what_waits(seen)
        self.what_waits_has_rung_the_bell(seen)
        self.what_was_closed_is_counted(seen)
        self.in_flight_is_what_instances_hold()
        assert all(ticket.attempts < MAX_ATTEMPTS for ticket in seen.queued + seen.in_flight)

    def every_open_request_can_still_be_answered(self, seen: Seen) -> None:
        tickets = Counter(ticket.id for ticket in seen.queued + seen.in_flight)
        for request_id, asked in self.model.asked.items():
            assert (request_id in seen.stored) is not asked.closed
            assert asked.closed or tickets[request_id], "lost"
            assert tickets[request_id] <= 1 or asked.is_again, "two tickets"

    def the_bytes_are_those_of_what_waits(self, seen: Seen) -> None:
        assert seen.bytes == sum(ticket.body_bytes for ticket in seen.queued)
        for ticket in seen.queued:
            assert ticket.body_bytes == len(self.model.asked[ticket.id].push.body)

    def what_waits_has_rung_the_bell(self, seen: Seen) -> None:
        assert seen.bell <= 1
        self.model.bell_lost = self.model.bell_lost and not seen.bell
        assert seen.bell or self.model.bell_lost or not self.model.live(seen.queued)

    def in_flight_is_what_instances_hold(self) -> None:
        for name, held in zip(self.model.names, self.model.held, strict=True):
            recorded = [ticket.id for ticket in self.model.in_flight(name)]
            # Nothing is recorded of one that was taken for dead, or after Redis lost its memory.
            assert recorded in ([], [item.id for item in held])

    def what_was_closed_is_counted(self, seen: Seen) -> None:
        assert seen.counts == {key: number for key, number in self.model.counts.items() if number}
        assert seen.dead == self.model.counts["dead"]

    @invariant()
    def only_documented_keys_exist_and_expire_as_documented(self) -> None:
        for key, lifetime_ms in lifetimes(self.client).items():
            (expires,) = [expires for pattern, expires in DOCUMENTED if re.fullmatch(pattern, key)]
            assert lifetime_ms == -2 or (lifetime_ms == -1) is expires.startswith("no")

    def teardown(self) -> None:
        try:
            self.everything_comes_to_rest()
        finally:
            self.model.wire.close()
            self.client.close()

    def everything_comes_to_rest(self) -> None:
        """Each who still waits is answered, and nothing stays."""
        model = self.model
        for slot in (0, 1):
            model.die(slot)
        self.supervisors_recover(supervisors=2)
        while model.look().queued:
            model.claim(0, 4)
            model.publish(0)
        model.collect()
        assert not model.waiting, "still waiting at the end"
        for request_id, asked in model.asked.items():
            assert not asked.deliveries or not self.client.exists(model.keys.result + request_id)
        assert not self.client.exists(model.keys.bytes, model.keys.order)


@pytest.mark.parametrize(
    ("batching", "has_keys"),
    [
        (Batching(), False),
        (Batching((2,), preserve_ordering=True, has_policies=True), True),
    ],
    ids=["as it is by itself", "with keys, policies, preferred sizes and ordered answers"],
)
def test_nothing_is_lost_and_nothing_is_answered_twice(
    redis_url: str, batching: Batching, has_keys: bool
) -> None:
    Queue.url, Queue.batching, Queue.has_keys = redis_url, batching, has_keys
    run_state_machine_as_test(
        Queue,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_the_model_knows_every_documented_key() -> None:
    assert len(DOCUMENTED) == 24
