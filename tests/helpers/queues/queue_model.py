"""A small model of the queue beside the real one: what each step must do, what must always hold.

The scripts are atomic, so steps that follow each other are all that "at once" can mean. What may
have been lost with a connection is played by running a beginning of what was written on it.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from itertools import count

from queue_reading import Asked, Seen, Ticket, answers_of, counted, look
from redis import Redis

from shared.courier.pending import PushArguments
from shared.model_spec import QueuePolicy
from shared.request_queue.claimed import Claimed
from shared.request_queue.commands import (
    MAX_ATTEMPTS,
    MAX_LOSSES,
    cancel_command,
    collect_command,
    push_command,
)
from shared.request_queue.keys import QueueKeys
from shared.request_queue.limits import Batching, Limits
from shared.request_queue.recovery import recover
from shared.request_queue.worker_end import WorkQueue
from shared.ticket import ASYNCHRONOUS, DELAY, REJECT
from shared.wire.wire import open_wire

LIMITS = Limits(requests=6, bytes=400)
PROCESS = "beefbeef"
RESULT_TTL_SECONDS = 60.0
NO_POLICY = struct.pack("<BdI", 0, 0.0, 0)


class QueueModel:
    """One API process and two instances, on a database of their own.

    They batch as `batching` says; `claimed` are the ids in the order of their first claim,
    `expired` those whose body Redis has removed by itself.
    """

    def __init__(self, client: Redis, batching: Batching) -> None:
        client.flushdb()
        self.client = client
        self.keys = QueueKeys("model", "m/1", levels=2)
        self.wire = open_wire(client)
        self.numbers = count()
        self.asked: dict[str, Asked] = {}
        self.waiting: dict[str, Asked] = {}
        self.names = ["i0.0", "i1.0"]
        self.held: list[list[Claimed]] = [[], []]
        self.unrecovered: list[str] = []
        self.last_claimed = Counter[tuple[int, str]]()
        self.counts = Counter[str]()
        self.bell_lost = False
        self.batching = batching
        policies = (QueuePolicy(), QueuePolicy()) if batching.has_policies else ()
        self.limits = LIMITS._replace(policies=policies)
        self.claimed: list[str] = []
        self.expired: set[str] = set()

    def new_push(
        self, asynchronous: bool, size: int, owner: str, terms: bytes, **rest
    ) -> PushArguments:
        """Make a request with a body of its own, perhaps of an API key; a turn has 2 rows."""
        if owner or terms:
            terms = (terms or NO_POLICY) + struct.pack("<II", 0, 2) + owner.encode()
        request_id = f"{ASYNCHRONOUS if asynchronous else PROCESS}{next(self.numbers):024x}"
        body = request_id.encode().ljust(size, b".")
        return PushArguments(
            id=request_id, timeout_seconds=1000.0, ttl_ms=1_060_000, body=body, terms=terms, **rest
        )

    def push(self, pushes: list[PushArguments]) -> None:
        """Push for the first time; checks what is accepted and what is refused."""
        before = [ticket.id for level in (1, 2) for ticket in self.queue(level)]
        waiting = len(before)
        waiting_bytes = int(self.client.get(self.keys.bytes) or 0)
        for push, status in zip(pushes, self.send_push(pushes), strict=True):
            size = len(push.body)
            full = waiting >= LIMITS.requests or (
                waiting > 0 and waiting_bytes + size > LIMITS.bytes
            )
            if push.terms[21:] and not full:  # a key may have its share
                crowded = waiting > 4 * (LIMITS.requests - waiting) or (
                    waiting > 0 and waiting_bytes > 4 * (LIMITS.bytes - waiting_bytes - size)
                )
                full = crowded and status.startswith(b"full")
            assert status == (b"full %d" % waiting if full else b"queued")
            if not full:
                waiting, waiting_bytes = waiting + 1, waiting_bytes + size
                self.asked[push.id] = asked = Asked(push, next(self.numbers))
                if push.id.startswith(PROCESS):
                    self.waiting[push.id] = asked
        after = [ticket.id for level in (1, 2) for ticket in self.queue(level)]
        assert [each for each in after if each in set(before)] == before, "moved by a push"

    def resume(self) -> None:
        """As the courier does: take every answer, then push again what is not answered."""
        self.collect(list(self.waiting))
        again = list(self.waiting.values())
        for asked, status in zip(again, self.send_push([each.push for each in again]), strict=True):
            assert status == b"known" or asked.closed, "an open one was not known"
            if status == b"queued":
                asked.closed, asked.returned, asked.order = False, False, next(self.numbers)
                asked.crashes, asked.is_again = 0, True
                self.claimed = [each for each in self.claimed if each != asked.push.id]
            elif status.startswith(b"full"):
                del self.waiting[asked.push.id]
                asked.closed = True

    def send_push(self, pushes: list[PushArguments]) -> list[bytes]:
        """Run push.lua, which counts what it refuses."""
        self.wire.send(push_command(self.keys, self.limits, pushes))
        statuses: list[bytes] = list(self.wire.reply())
        self.counts["full"] += sum(status.startswith(b"full") for status in statuses)
        return statuses

    def claim(self, slot: int, max_rows: int, delay_seconds: float = 0.0) -> None:
        """Claim as the instance in `slot` does when the bell rang or a second is over."""
        rang = self.client.lpop(self.keys.bell)
        delayed = {
            ticket.id
            for level in (1, 2)
            for ticket in self.queue(level)
            if ticket.overdue == DELAY or ticket in self.delayed(level)
        }
        batch = self.send_claim(slot, max_rows, delay_seconds)
        # Who waits for company looks again by itself.
        self.bell_lost = self.bell_lost or bool(rang and not batch)
        self.held[slot] = batch
        tickets = self.in_flight(self.names[slot])[-len(batch) :] if batch else []
        assert [ticket.id for ticket in tickets] == [item.id for item in batch]
        assert len(batch) <= 1 or sum(item.rows for item in batch) <= max_rows
        assert len({ticket.signature for ticket in tickets}) <= 1
        for ticket, item in zip(tickets, batch, strict=True):
            asked = self.asked[item.id]
            assert not (asked.closed or asked.late), "a closed request was claimed"
            assert item.body == asked.push.body
            assert item.attempts == asked.crashes + 1 or asked.is_again
            assert item.attempts == 1 or len(batch) == 1, "one that was in a crash has company"
            assert not any(self.live(self.queue(level)) for level in range(1, ticket.level))
            if ticket.id in delayed:
                behind = self.queue(ticket.level)[: -len(self.delayed(ticket.level)) or None]
                assert asked.is_again or not self.live(behind), "a delayed one was not the last"
            elif not (asked.returned or asked.is_again):
                assert asked.order > self.last_claimed[ticket.level, asked.owner], "overtaken"
                self.last_claimed[ticket.level, asked.owner] = asked.order

    def send_claim(self, slot: int, max_rows: int, delay_seconds: float = 0.0) -> list[Claimed]:
        """Run claim.lua without waiting for the bell; checks what it drops."""
        work, queued = self.work(slot), self.queue(1) + self.queue(2)
        dropped = Counter(ticket.id for ticket in queued)
        rejected = {ticket.id for ticket in queued if ticket.overdue == REJECT}
        batch = work.claim_now(max_rows, delay_seconds)[0]
        dropped.subtract(item.id for item in batch)
        dropped.subtract(ticket.id for ticket in self.queue(1) + self.queue(2))
        for asked in (self.asked[request_id] for request_id in dropped.elements()):
            is_rejected = asked.push.id in rejected
            assert asked.closed or asked.late or is_rejected, "one was dropped that could be run"
            self.counts["rejected" if is_rejected else "expired"] += not asked.closed
            asked.closed = True
        if self.batching.preserve_ordering:
            self.claimed += [item.id for item in batch if item.id not in self.claimed]
        return batch

    def publish(self, slot: int, *, drop: bool = True) -> None:
        """Answer what the instance holds, on time or late; the first answer closes a request."""
        held = self.held[slot]
        items = {item.id: self.asked[item.id] for item in held}
        open_ones = [asked for asked in items.values() if not asked.closed]
        assert self.work(slot).publish(held, answers_of(held), drop=drop) == len(open_ones)
        self.counts.update(counted(open_ones))
        for asked in open_ones:
            asked.closed = True

    def lose_connection(self, slot: int, done: int, max_rows: int) -> None:
        """Run the first `done` of publish, BLPOP and claim, then settle as the loop does."""
        if done >= 1 and self.held[slot]:
            self.publish(slot)
        if done >= 2:
            self.bell_lost = bool(self.client.lpop(self.keys.bell)) or self.bell_lost
        if done >= 3:
            self.send_claim(slot, max_rows)
        for _ in range(2):
            if self.held[slot]:
                self.publish(slot, drop=False)
        self.put_back_by_others(self.names[slot], crashed=False)
        self.held[slot] = []

    def lose_device(self, slot: int, suspects: Collection[str]) -> None:
        """Have an instance put back what it holds, since its device failed under `suspects`."""
        work = self.work(slot)
        self.put_back(self.names[slot], lambda: work.put_back_lost(suspects, "gone"), suspects)
        self.die(slot)

    def put_back_by_others(self, name: str, *, crashed: bool) -> None:
        """Recover an instance's list, for a crash or a lost connection."""
        self.put_back(
            name,
            lambda: recover(
                self.wire, self.keys, name, crashed=crashed, result_ttl_seconds=RESULT_TTL_SECONDS
            ),
            None if crashed else (),
        )

    def put_back(
        self, name: str, run: Callable[[], tuple[int, int]], suspects: Collection[str] | None
    ) -> None:
        """Recover an instance's list; checks who goes back, and where, and who is given up.

        An attempt counts for `suspects`, None for all; with some named the second is the last.
        """
        held, before = self.in_flight(name), [self.queue(level) for level in (1, 2)]
        most = MAX_LOSSES if suspects else MAX_ATTEMPTS
        outcome = run()
        back: list[list[Ticket]] = [[], []]
        given_up = 0
        for ticket in held:
            asked = self.asked[ticket.id]
            if asked.closed:
                continue
            counts = suspects is None or ticket.id in suspects
            if counts and ticket.attempts + 1 >= most:
                assert asked.crashes + 1 >= most or asked.is_again
                asked.closed = True
                given_up += 1
            else:
                asked.returned, asked.crashes = True, asked.crashes + counts
                attempts = ticket.attempts + counts
                back[ticket.level - 1].append(ticket._replace(attempts=attempts, on_timeout=0))
        assert outcome == (len(back[0] + back[1]), given_up)
        assert [self.queue(level) for level in (1, 2)] == [
            new + old for new, old in zip(back, before, strict=True)
        ], "not put back to the head, or not in order"
        for ticket in held:
            self.asked[ticket.id].returned = True
        self.counts["dead"] += outcome[1]
        self.counts["retried"] += outcome[0] if suspects is None or suspects else 0

    def die(self, slot: int) -> None:
        """End an instance; the next one in its slot has another name."""
        self.unrecovered.append(self.names[slot])
        self.held[slot] = []
        name, _, start = self.names[slot].partition(".")
        self.names[slot] = f"{name}.{int(start) + 1}"

    def collect(self, ids: Iterable[str] = (), *, reply_is_lost: bool = False) -> None:
        """Take the answers that are there; each must be its request's own, and the only one."""
        self.wire.send(collect_command(self.keys, PROCESS, ids))
        found = self.wire.reply()
        if reply_is_lost:
            return
        for raw_id, result in zip(found[::2], found[1::2], strict=True):
            asked = self.asked[raw_id.decode()]
            asked.deliveries += 1
            assert asked.deliveries == 1, "answered twice"
            assert result == b"of " + asked.push.body or (
                b"model_crashed" in result or b"request_expired" in result
            )
            if asked.push.id in self.claimed:
                before = self.claimed[: self.claimed.index(asked.push.id)]
                assert all(self.asked[each].closed for each in before), "told out of order"
            self.waiting.pop(raw_id.decode(), None)

    def cancel(self, ids: list[str], why: str, *, only_waiting: bool) -> None:
        """Take requests back, which the API then no longer waits for."""
        queued = {
            ticket.id
            for level in (1, 2)
            for ticket in self.queue(level)
            if why != "rejected" or ticket.on_timeout == REJECT
        }
        self.wire.send(cancel_command(self.keys, why, ids, only_waiting=only_waiting))
        for request_id, reply in zip(ids, self.wire.reply(), strict=True):
            asked = self.asked[request_id]
            expected = b"waiting" if request_id in queued else b"running"
            assert reply == (b"gone" if asked.closed else expected)
            if reply == b"waiting" or (reply == b"running" and not only_waiting):
                asked.closed = True
                self.counts[why] += 1
                self.waiting.pop(request_id, None)

    def pass_deadline(self, request_id: str, *, body_expires: bool) -> None:
        """Let a request's deadline pass, and perhaps the minute that its body outlives it."""
        for key in [*self.keys.lists, *(self.keys.inflight + name for name in self.instances())]:
            for position, raw in enumerate(self.client.lrange(key, 0, -1)):
                if Ticket.read(raw).id == request_id:
                    self.client.lset(key, position, Ticket.made_late(raw))
        asked = self.asked[request_id]
        asked.late = True
        self.waiting.pop(request_id, None)
        if body_expires:
            self.client.delete(self.keys.body + request_id)
            self.expired.add(request_id)
            asked.closed = True

    def pass_queue_time(self, request_id: str) -> None:
        """Let a request's time on the queue be over, if it has such a time and waits."""
        for key in self.keys.lists:
            for position, raw in enumerate(self.client.lrange(key, 0, -1)):
                if Ticket.read(raw).id == request_id:
                    self.client.lset(key, position, Ticket.made_overdue(raw))

    def forget(self) -> None:
        """Empty Redis: until it is pushed again, everything is lost."""
        self.client.flushdb()
        self.claimed.clear()
        for asked in self.asked.values():
            asked.closed = True
        self.counts.clear()

    def work(self, slot: int) -> WorkQueue:
        """Return the worker's end of an instance."""
        return WorkQueue(
            self.wire, self.keys, self.names[slot],
            result_ttl_seconds=RESULT_TTL_SECONDS, batching=self.batching,
        )  # fmt: skip

    def queue(self, level: int) -> list[Ticket]:
        """Return what waits on a level, in the order of service."""
        waiting = self.client.lrange(self.keys.queues[level - 1], 0, -1)
        return [Ticket.read(raw) for raw in waiting] + self.delayed(level)

    def delayed(self, level: int) -> list[Ticket]:
        """Return what is delayed on a level."""
        key = f"{self.keys.delayed}{level}"
        return [Ticket.read(raw) for raw in self.client.lrange(key, 0, -1)]

    def in_flight(self, name: str) -> list[Ticket]:
        """Return what Redis has an instance hold."""
        return [Ticket.read(raw) for raw in self.client.lrange(self.keys.inflight + name, 0, -1)]

    def live(self, tickets: list[Ticket]) -> list[Ticket]:
        """Return those that an instance would take."""
        return [
            ticket
            for ticket in tickets
            if not (self.asked[ticket.id].closed or self.asked[ticket.id].late or ticket.overdue)
        ]

    def look(self) -> Seen:
        """Read all that is in Redis."""
        return look(self.client, self.keys, self.instances(), list(self.asked))

    def instances(self) -> list[str]:
        """Return who may have an in-flight list."""
        return [*self.names, *self.unrecovered]
