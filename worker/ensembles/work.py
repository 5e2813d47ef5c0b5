"""An ensemble's end of its own queue: requests leave it in any order, each once it is answered."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from threading import Condition
from typing import Any, NamedTuple

from redis.exceptions import ResponseError

from shared.request_queue.claimed import Answers, Claimed
from shared.request_queue.worker_end import WorkQueue
from shared.wire.packing import Command


class Finished(NamedTuple):
    """A request that is answered: all tickets that stand for it, and its answer."""

    claimed: Claimed
    answers: Answers
    tickets: tuple[bytes, ...]


class EnsembleQueue(WorkQueue):
    """A WorkQueue whose requests are not published in the order in which they were claimed.

    `WorkQueue.publish` drops as many tickets as it publishes from the head of the in-flight list.
    Here each ticket is taken off by itself, behind the publish in the same write. Should the
    process die between the two, `recover.lua` finds the request answered and drops the ticket.
    """

    def publish_each(self, finished: Sequence[Finished]) -> list[ResponseError | None]:
        """Hand out answers (stop 7); returns for each what Redis has against it, if anything.

        Raises RedisError when it is not known what was done: calling it again does no harm.
        """
        commands: list[Command] = []
        for one in finished:
            commands.append(self._publish([one.claimed], one.answers, 0))
            commands += [self._removal(ticket) for ticket in one.tickets]
        self._wire.send(*commands)
        return [self._refusal(1 + len(one.tickets)) for one in finished]

    def closed(self, ids: Sequence[str]) -> set[str]:
        """Return those of these requests whose answer nobody wants any more. Raises RedisError."""
        self._wire.send(*[("EXISTS", self._keys.body + request_id) for request_id in ids])
        return {request_id for request_id in ids if not self._wire.reply()}

    def drop(self, tickets: Sequence[bytes]) -> None:
        """Hold these no longer. Raises RedisError."""
        self._wire.send(*map(self._removal, tickets))
        for _ in tickets:
            self._wire.reply()

    def lost(self, known: Collection[bytes]) -> list[Claimed]:
        """Return what this instance holds beside the `known` tickets: claimed, but never heard of.

        So it is after a claim whose reply was lost. Raises RedisError.
        """
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


class Seats:
    """How many rows an ensemble's process has under way, and how many more it may claim.

    What it cannot run at once stays on the queue, for another process of the same ensemble.
    """

    def __init__(self, rows: int) -> None:
        """Have so many."""
        self._rows = rows
        self._taken: dict[bytes, int] = {}
        self._changed = Condition()

    @property
    def tickets(self) -> frozenset[bytes]:
        """Return the tickets of all that is under way."""
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

    def take(self, claimed: Sequence[Claimed]) -> None:
        """Seat what was claimed."""
        with self._changed:
            self._taken.update((item.ticket, item.rows) for item in claimed)

    def leave(self, tickets: Sequence[bytes]) -> None:
        """Free the seats of what is under way no more."""
        with self._changed:
            for ticket in tickets:
                self._taken.pop(ticket, None)
            self._changed.notify_all()

    @property
    def _free(self) -> int:
        return self._rows - sum(self._taken.values())
