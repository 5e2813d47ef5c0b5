"""An ensemble's end of its own queue: requests leave it in any order, each once it is answered."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Sequence
from threading import Condition
from typing import Any, NamedTuple

from redis.exceptions import RedisError, ResponseError

from shared.request_queue.claimed import Claimed, EncodedResults
from shared.request_queue.refusals import MAX_REFUSALS, is_state_of_redis, refusal_errors
from shared.request_queue.worker_end import WorkQueue
from shared.wire.outage import RETRY_SECONDS, Outage
from shared.wire.packing import Command
from worker.meter import Meter

log = logging.getLogger(__name__)


class Finished(NamedTuple):
    """An answered request: its answer, and all tickets that stand for it."""

    claimed: Claimed
    answers: EncodedResults
    tickets: tuple[bytes, ...]


class EnsembleQueue(WorkQueue):
    """A WorkQueue whose requests are not published in the order in which they were claimed.

    `WorkQueue.publish` drops as many tickets as it publishes from the head of the in-flight list.
    Here each ticket is taken off by itself, behind the publish in the same write. Should the
    process die between the two, `recover.lua` finds the request answered and drops the ticket.
    """

    def publish_each(self, finished: Sequence[Finished]) -> list[ResponseError | None]:
        """Publish answers; returns for each the error by which Redis refuses it, or None.

        Raises RedisError when the outcome is unknown: calling it again does no harm.
        """
        commands: list[Command] = []
        for one in finished:
            commands.append(self._publish([one.claimed], one.answers, 0))
            commands += [self._removal(ticket) for ticket in one.tickets]
        self._wire.send(*commands)
        return [self._refusal(1 + len(one.tickets)) for one in finished]

    def closed(self, ids: Sequence[str]) -> set[str]:
        """Return those of these requests that nobody waits for any more. Raises RedisError."""
        self._wire.send(*[("EXISTS", self._keys.body + request_id) for request_id in ids])
        return {request_id for request_id in ids if not self._wire.reply()}

    def drop(self, tickets: Sequence[bytes]) -> None:
        """Drop tickets from the in-flight list. Raises RedisError."""
        self._wire.send(*map(self._removal, tickets))
        for _ in tickets:
            self._wire.reply()

    def lost(self, known: Collection[bytes]) -> list[Claimed]:
        """Return requests in the in-flight list beside the `known` tickets.

        They were claimed by a command whose reply was lost. Raises RedisError.
        """
        self._end_lost_wait()
        self._wire.send(("TIME",), ("LRANGE", self._keys.inflight + self._end.instance, 0, -1))
        (seconds, microseconds), tickets = self._wire.reply(), self._wire.reply()
        unknown = [ticket for ticket in tickets if ticket not in known]
        now, found = int(seconds) + int(microseconds) / 1e6, list[Claimed]()
        for ticket in unknown:
            item = Claimed.of(ticket, b"", now)
            self._wire.send(("GET", self._keys.body + item.id))
            body = self._wire.reply()
            if body is None:
                self.drop([ticket])
            else:
                found.append(item._replace(body=body))
        return found

    def _removal(self, ticket: bytes) -> tuple[Any, ...]:
        return ("LREM", self._keys.inflight + self._end.instance, 1, ticket)

    def _refusal(self, reply_count: int) -> ResponseError | None:
        """Read the replies that belong to one request; return the first error among them."""
        refusal = None
        for _ in range(reply_count):
            try:
                self._wire.reply()
            except ResponseError as error:
                refusal = refusal or error
        return refusal


class RowBudget:
    """The rows that an ensemble's process has under way, and those that it may still claim.

    Rows beyond the budget stay on the queue, for another process of the same ensemble.
    """

    def __init__(self, rows: int) -> None:
        """Take `rows` as the budget."""
        self._rows = rows
        self._taken: dict[bytes, int] = {}
        self._changed = Condition()

    @property
    def tickets(self) -> frozenset[bytes]:
        """Return the tickets of all requests under way."""
        with self._changed:
            return frozenset(self._taken)

    def wait_free(self, seconds: float) -> int:
        """Return how many rows are free, waiting until there is one."""
        with self._changed:
            self._changed.wait_for(lambda: self._free > 0, seconds)
            return max(0, self._free)

    def wait_empty(self, seconds: float) -> bool:
        """Return whether nothing is under way, waiting for it."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._taken, seconds)

    def reserve(self, claimed: Sequence[Claimed]) -> None:
        """Count the rows of claimed requests."""
        with self._changed:
            self._taken.update((item.ticket, item.rows) for item in claimed)

    def release(self, tickets: Sequence[bytes]) -> None:
        """Give back the rows of requests that ended."""
        with self._changed:
            for ticket in tickets:
                self._taken.pop(ticket, None)
            self._changed.notify_all()

    @property
    def _free(self) -> int:
        return self._rows - sum(self._taken.values())


class Outbox:
    """The answers that are not published yet; used by the scheduler's thread only.

    Those that gather go in one write, and again when Redis was away.
    """

    def __init__(self, queue: EnsembleQueue, budget: RowBudget, meter: Meter) -> None:
        """Publish to `queue`; a published answer gives back its rows and is counted in `meter`."""
        self.waiting: list[Finished] = []
        self.next_try = 0.0
        self._queue = queue
        self._budget = budget
        self._meter = meter
        self._refusals: dict[str, int] = {}
        self._outage = Outage(log)

    def add(self, finished: Finished) -> None:
        """Publish an answer with the next ones."""
        self.waiting.append(finished)

    def publish(self) -> None:
        """Publish the answers that are there, unless Redis just failed to take them."""
        if not self.waiting or time.monotonic() < self.next_try:
            return
        try:
            refusals = self._queue.publish_each(self.waiting)
        except RedisError as error:
            self._outage.note(error, f"{len(self.waiting)} answers wait, trying again")
            self.next_try = time.monotonic() + RETRY_SECONDS
            return
        self._outage.end()
        tried, self.waiting = self.waiting, []
        for one, refusal in zip(tried, refusals, strict=True):
            if refusal is None:
                self._count(one)
            else:
                self.waiting.append(self._after_refusal(one, refusal))
        self.next_try = time.monotonic() + RETRY_SECONDS if self.waiting else 0.0

    def _count(self, one: Finished) -> None:
        """Give back the rows of a published answer, and count it as a batch."""
        self._budget.release(one.tickets)
        self._refusals.pop(one.claimed.id, None)
        self._meter.answered_count += 1
        self._meter.row_count += one.claimed.rows
        self._meter.batch_count += 1
        self._meter.last_batch_rows = one.claimed.rows

    def _after_refusal(self, one: Finished, refusal: ResponseError) -> Finished:
        """Return the next try of an answer that Redis refused: itself, in the end an error."""
        count = self._refusals.get(one.claimed.id, 0) + (not is_state_of_redis(refusal))
        self._refusals[one.claimed.id] = count
        if count != MAX_REFUSALS:
            return one
        log.error("Redis does not take an answer, its error goes out: %s", refusal)
        return one._replace(answers=refusal_errors([one.claimed]))
