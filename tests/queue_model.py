"""A small model of the queue beside the real one: what each step must do, what must always hold.

The scripts are atomic, so steps that follow each other are all that "at once" can mean. What may
have been lost with a connection is played by running a beginning of what was written on it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import count
from typing import NamedTuple

from redis import Redis

from shared import queue_keys
from shared.parcels import Push
from shared.queue_commands import Limits, cancel_command, push_command
from shared.queue_keys import DETACHED, TICKET, QueueKeys
from shared.redis_connection import open_wire, script_digest
from shared.request_queue import MAX_ATTEMPTS, Claimed, WorkQueue, recover

LIMITS = Limits(requests=6, bytes=400)
PROCESS = "beefbeef"
SHORT_SECONDS = 0.005
RESULT_TTL_SECONDS = 60.0
DOCUMENTED = [
    (re.sub("<[a-z]+>", "[^:]+", name.replace("ferry:{m/v}", "model:\\{m/1\\}")), expires)
    for name, expires in re.findall(
        r"^    (ferry:\{m/v\}:\S+) .* (no|yes|no \(see 1\)|7 days)$",
        queue_keys.__doc__,
        re.MULTILINE,
    )
]


@dataclass
class Asked:
    """One request as whoever asked knows it; nothing is promised of a `short` one."""

    push: Push
    order: int
    closed: bool = False
    returned: bool = False
    deliveries: int = 0

    @property
    def short(self) -> bool:
        return self.push.timeout_seconds < 1


class Ticket(NamedTuple):
    """One ticket as it stands on a list."""

    id: str
    attempts: int
    level: int
    rows: int
    signature: bytes
    body_bytes: int
    deadline: float

    @classmethod
    def read(cls, raw: bytes) -> Ticket:
        _, attempts, level, rows, _, deadline, signature, size = TICKET.unpack_from(raw)
        return cls(raw[TICKET.size :].decode(), attempts, level, rows, signature, size, deadline)


class QueueModel:
    """One API process and two instances, on a database of their own."""

    def __init__(self, client: Redis) -> None:
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
        self.last_claimed = {1: -1, 2: -1}
        self.counts = {"cancelled": 0, "dead": 0}
        self.bell_lost = False

    def new_push(
        self, level: int, rows: int, signature: bytes, size: int, *, short: bool, detached: bool
    ) -> Push:
        """Make a request with a body of its own."""
        request_id = f"{DETACHED if detached else PROCESS}{next(self.numbers):024x}"
        timeout = SHORT_SECONDS if short else 1000.0
        body = request_id.encode().ljust(size, b".")
        return Push(request_id, rows, level, signature, timeout, int(1200 * timeout), body)

    def push(self, pushes: list[Push]) -> None:
        """Push for the first time; checks what is accepted and what is refused."""
        waiting = sum(len(self.queue(level)) for level in (1, 2))
        waiting_bytes = int(self.client.get(self.keys.bytes) or 0)
        for push, status in zip(pushes, self.send_push(pushes), strict=True):
            size = len(push.body)
            full = waiting >= LIMITS.requests or (
                waiting > 0 and waiting_bytes + size > LIMITS.bytes
            )
            assert status == (b"full %d" % waiting if full else b"queued")
            if not full:
                waiting, waiting_bytes = waiting + 1, waiting_bytes + size
                self.asked[push.id] = asked = Asked(push, next(self.numbers))
                if push.id.startswith(PROCESS):
                    self.waiting[push.id] = asked

    def resume(self) -> None:
        """As `Courier._resume`: take every answer, then push again what is not answered."""
        self.collect(list(self.waiting))
        again = list(self.waiting.values())
        for asked, status in zip(again, self.send_push([each.push for each in again]), strict=True):
            assert status == b"known" or asked.closed or asked.short, "an open one was not known"
            if status == b"queued":
                asked.closed, asked.returned, asked.order = False, False, next(self.numbers)
            elif status.startswith(b"full"):
                del self.waiting[asked.push.id]
                asked.closed = True

    def send_push(self, pushes: list[Push]) -> list[bytes]:
        """Run push.lua."""
        self.wire.send(push_command(self.keys, LIMITS, pushes))
        statuses: list[bytes] = self.wire.reply()
        return statuses

    def claim(self, slot: int, max_rows: int) -> None:
        """Claim as the instance in `slot` does when the bell rang or a second is over."""
        self.client.lpop(self.keys.bell)
        batch = self.send_claim(slot, max_rows)
        self.held[slot] = batch
        tickets = self.in_flight(self.names[slot])[-len(batch) :] if batch else []
        assert [ticket.id for ticket in tickets] == [item.id for item in batch]
        assert len(batch) <= 1 or sum(item.rows for item in batch) <= max_rows
        assert len({ticket.signature for ticket in tickets}) <= 1
        for ticket, item in zip(tickets, batch, strict=True):
            asked = self.asked[item.id]
            assert not asked.closed or asked.short, "a closed request was claimed"
            assert item.body == asked.push.body
            assert item.attempts <= MAX_ATTEMPTS
            assert item.attempts == 1 or len(batch) == 1, "one that was in a crash has company"
            assert not any(self.live(self.queue(level)) for level in range(1, ticket.level))
            if not asked.returned:
                assert asked.order > self.last_claimed[ticket.level], "overtaken on its level"
                self.last_claimed[ticket.level] = asked.order

    def send_claim(self, slot: int, max_rows: int) -> list[Claimed]:
        """Run claim.lua without waiting for the bell."""
        work = self.work(slot)
        self.wire.send(work._claim(max_rows, 0.0))
        return work._read_batch()[0]

    def publish(self, slot: int, *, drop: bool = True) -> None:
        """Answer what the instance holds, on time or late; the first answer closes a request."""
        held = self.held[slot]
        items = {item.id: self.asked[item.id] for item in held}
        open_ones = [asked for asked in items.values() if not asked.closed]
        first = self.work(slot).publish(held, [b"of " + item.body for item in held], drop=drop)
        assert first <= len(open_ones)
        assert first >= sum(not asked.short for asked in open_ones)
        for asked in open_ones:
            asked.closed = True

    def lose_connection(self, slot: int, done: int, max_rows: int) -> None:
        """Have the first `done` of publish, BLPOP and claim done, then settle as worker.loop does.

        A second loss, while settling, has the publishing done twice.
        """
        if done >= 1 and self.held[slot]:
            self.publish(slot)
        if done >= 2:
            self.bell_lost = bool(self.client.lpop(self.keys.bell))
        if done >= 3:
            self.send_claim(slot, max_rows)
        for _ in range(2):
            if self.held[slot]:
                self.publish(slot, drop=False)
        self.put_back(self.names[slot], crashed=False)
        self.held[slot] = []

    def put_back(self, name: str, *, crashed: bool) -> None:
        """Recover an instance's in-flight list; checks who goes back and who is given up."""
        tickets = self.in_flight(name)
        open_ones = [ticket for ticket in tickets if self.client.exists(self.keys.body + ticket.id)]
        given_up = {t.id for t in open_ones if crashed and t.attempts + 1 == MAX_ATTEMPTS}
        outcome = recover(
            self.wire, self.keys, name, crashed=crashed, result_ttl_seconds=RESULT_TTL_SECONDS
        )
        if not any(self.asked[ticket.id].short for ticket in tickets):
            assert outcome == (len(open_ones) - len(given_up), len(given_up))
        for ticket in tickets:
            self.asked[ticket.id].returned = True
        for request_id in given_up:
            self.asked[request_id].closed = True
        self.counts["dead"] += outcome[1]

    def die(self, slot: int) -> None:
        """End an instance; the next one in its slot has another name."""
        self.unrecovered.append(self.names[slot])
        self.held[slot] = []
        name, _, start = self.names[slot].partition(".")
        self.names[slot] = f"{name}.{int(start) + 1}"

    def collect(self, ids: Iterable[str] = (), *, reply_is_lost: bool = False) -> None:
        """Take the answers that are there; each must be its request's own, and the only one."""
        keys = self.keys
        answered = keys.answered + PROCESS
        self.wire.send(("EVALSHA", script_digest("collect"), 1, answered, keys.result, *ids))
        found = self.wire.reply()
        if reply_is_lost:
            return
        for raw_id, result in zip(found[::2], found[1::2], strict=True):
            asked = self.asked[raw_id.decode()]
            asked.deliveries += 1
            assert asked.deliveries == 1, "answered twice"
            assert result == b"of " + asked.push.body or b"model_crashed" in result
            self.waiting.pop(raw_id.decode(), None)

    def cancel(self, ids: list[str], *, only_waiting: bool) -> None:
        """Take requests back; those that nobody waits for any more are forgotten by the API."""
        queued = {ticket.id for level in (1, 2) for ticket in self.queue(level)}
        self.wire.send(cancel_command(self.keys, "cancelled", ids, only_waiting=only_waiting))
        for request_id, reply in zip(ids, self.wire.reply(), strict=True):
            asked = self.asked[request_id]
            if not asked.short:
                expected = b"waiting" if request_id in queued else b"running"
                assert reply == (b"gone" if asked.closed else expected)
            if reply == b"waiting" or (reply == b"running" and not only_waiting):
                asked.closed = True
                self.counts["cancelled"] += 1
                self.waiting.pop(request_id, None)

    def forget(self) -> None:
        """Empty Redis. What no API process waits for is lost with it, as documented."""
        self.client.flushdb()
        for asked in self.asked.values():
            asked.closed = True
        self.counts = dict.fromkeys(self.counts, 0)
        self.resume()

    def work(self, slot: int) -> WorkQueue:
        """Return the worker's end of an instance."""
        return WorkQueue(
            self.wire, self.keys, self.names[slot], result_ttl_seconds=RESULT_TTL_SECONDS
        )

    def queue(self, level: int) -> list[Ticket]:
        """Return what stands on a queue."""
        return [Ticket.read(raw) for raw in self.client.lrange(self.keys.queues[level - 1], 0, -1)]

    def in_flight(self, name: str) -> list[Ticket]:
        """Return what Redis has an instance hold."""
        return [Ticket.read(raw) for raw in self.client.lrange(self.keys.inflight + name, 0, -1)]

    def live(self, tickets: list[Ticket]) -> list[Ticket]:
        """Return those that an instance would take."""
        return [t for t in tickets if not (self.asked[t.id].closed or self.asked[t.id].short)]
