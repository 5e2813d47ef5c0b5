"""An instance's end of every hop a request takes through Redis: claim, then publish."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Collection

from redis.exceptions import RedisError, ResponseError

from shared.bodies.worker_bodies import WorkerBodies
from shared.request_queue.claimed import BATCHES_BETWEEN_BULK, Claimed, EncodedResults, found_beside
from shared.request_queue.commands import claim_command, publisher
from shared.request_queue.keys import QueueKeys
from shared.request_queue.limits import Batching, CacheLimits, InstanceEnd, Loss
from shared.request_queue.recovery import bring_in, recover_one
from shared.wire.packing import PackedCommand
from shared.wire.wire import LONGEST_BLOCK_SECONDS, NO_REPLY, READ_BYTES, Wire

log = logging.getLogger(__name__)

WORKLESS_SECONDS = 10.0
"""After so long without a batch an instance no longer looks by itself what the bell has not told;
the supervisor does (`Recovery.ring_for_what_waits`).
"""
WORKLESS_BLOCK_SECONDS = 600.0
"""fast: with a hundred models it is this that a worker does when nobody asks. That Redis is gone
the kernel says (see `shared.wire.client.connect`); of one that hangs the supervisor hears.
"""
SHORT_WAIT_SECONDS = 0.002
"""The longest wait that is slept through, which is more exact than waiting for the bell."""


class AnswersNotTaken(RedisError):
    """A publish whose reply nobody waited for has failed."""


class WorkQueue:
    """An instance's end: claim a batch, publish its answers. One thread, one connection."""

    def __init__(
        self,
        wire: Wire,
        keys: QueueKeys,
        instance: str,
        *,
        result_ttl_seconds: float,
        batching: Batching = Batching(),  # noqa: B008, it is frozen
        cache: CacheLimits = CacheLimits(),  # noqa: B008
    ) -> None:
        """Claim as `instance`, whose in-flight list a supervisor recovers when it dies."""
        self._wire = wire
        self._waker = wire.beside()
        self._keys = keys
        self._end = InstanceEnd(keys, instance, result_ttl_seconds, batching, cache)
        self._bell = PackedCommand.of("BLPOP", keys.bell, LONGEST_BLOCK_SECONDS)
        self._idle_bell = PackedCommand.of("BLPOP", keys.bell, WORKLESS_BLOCK_SECONDS)
        self.bodies: WorkerBodies | None = None  # where large tensors of requests may lie
        self.wakeup: int | None = None
        """A descriptor that can be read when the process was sent a signal; an idle instance waits
        longer with it.
        """
        self._busy_at = time.monotonic()
        self._is_idle = False
        self._client_id = self._connection = 0
        self._publish = publisher(self._end)
        self._claims: dict[
            tuple[int, float, bool, bool], PackedCommand
        ] = {}  # fast: each packed once
        self._batches_since_bulk = 0
        self.left_behind = 0
        """How many requests were waiting behind the last batch, as far as its claim tells."""
        self._stale = keys.answers if keys.cache else []

    def claim(self, max_rows: int, max_delay_seconds: float) -> list[Claimed]:
        """Take one batch, waiting for work (stop 5); empty when there is none for half a second.

        One that has been idle for long waits until the bell rings. The batch is recorded as this
        instance's in-flight work in the same step. Raises RedisError.
        Next stop: `worker.instance.loop.answer_claimed`.
        """
        if self._stale:  # the model's file may have been another one when these were filled
            self._wire.send(("UNLINK", *self._stale))
            self._wire.reply()
            self._stale = []
        if self._is_idle and self._wire.is_open:  # fast: the last look was a claim, and in vain
            return self._wait_and_claim(max_rows, max_delay_seconds, -1.0)
        batch, wait_seconds = self.claim_now(max_rows, max_delay_seconds)
        return batch or self._wait_and_claim(max_rows, max_delay_seconds, wait_seconds)

    def claim_now(self, max_rows: int, max_delay_seconds: float) -> tuple[list[Claimed], float]:
        """Take the batch that may leave at once; without one, return how long to wait for it.

        Below zero: until something is pushed.
        """
        self._wire.send(self._claim(max_rows, max_delay_seconds))
        batch, wait_seconds, _ = self._read_batch()
        return batch, wait_seconds

    def claim_ahead(self, max_rows: int, max_delay_seconds: float) -> list[Claimed]:
        """Take a batch beside one that is computed, if it would not grow any more; never waits."""
        self._wire.send(self._claim(max_rows, max_delay_seconds, ahead=True))
        return self._read_batch()[0]

    def has_idle_peer(self) -> bool:
        """Tell whether another instance waits for the bell, which then looks at the queue."""
        bell = self._keys.bell
        self._wire.send(("RPUSH", bell, "1"), ("LTRIM", bell, 0, 0), ("EXISTS", bell))
        *_, is_left = self._wire.reply(), self._wire.reply(), self._wire.reply()
        return not is_left

    def publish_and_claim(
        self, claimed: list[Claimed], answers: EncodedResults, max_rows: int,
        max_delay_seconds: float, *, ahead: bool = False,
    ) -> list[Claimed]:  # fmt: skip
        """Publish a batch and take the next one, perhaps `ahead`, in one write.

        fast: the bell is waited for at once: a claim that leaves work behind, and every push, rings
        it. A reply to the publish would wake this process for nothing, while others hand the
        answers on; should it have failed, the claim finds what it did not drop, and AnswersNotTaken
        is raised. Next on the way back: `Collector`, in the API process that pushed.
        """
        claim = self._claim(max_rows, max_delay_seconds, ahead=ahead)
        publish = self._publish(claimed, answers, len(claimed))
        bell = () if ahead else (self._bell,)
        self._wire.send(NO_REPLY, publish, *bell, claim)
        for _ in bell:
            self._wire.reply()
        batch, wait_seconds, holds_more = self._read_batch()
        if holds_more:
            raise AnswersNotTaken("the answers are still in flight, Redis did not take them")
        if batch or ahead or wait_seconds < 0:
            return batch
        return self._wait_and_claim(max_rows, max_delay_seconds, wait_seconds)

    def publish(self, claimed: list[Claimed], answers: EncodedResults, *, drop: bool = True) -> int:
        """Hand out a batch's answers, drop it from the in-flight work and count it.

        All in one step. Returns how many were the first answer to their request; only these are
        counted. After a RedisError call it again without `drop`, since the first call may have been
        done and followed by a claim; then `put_back` what is left.
        """
        self._wire.send(self._publish(claimed, answers, len(claimed) if drop else 0))
        first: int = self._wire.reply()
        return first

    def probe(self) -> None:
        """Read something small; raises RedisError when Redis does not answer that either."""
        self._wire.send(("EXISTS", self._keys.inflight + self._end.instance))
        self._wire.reply()

    def put_back(self) -> tuple[int, int]:
        """Return this instance's requests to the queue, after a lost connection."""
        self._end_lost_wait()
        return recover_one(self._wire, self._end, crashed=False)

    def put_back_lost(self, suspects: Collection[str], reason: str) -> tuple[int, int]:
        """Return this instance's requests to the queue, since it is to end for `reason`.

        An attempt counts for the `suspects` alone, which ran when it failed; the second is their
        last. Raises RedisError: then they are put back by who finds the instance dead.
        """
        if self.bodies is not None:
            bring_in(self._wire, self._keys, self._end.instance, self.bodies)
        return recover_one(self._wire, self._end, crashed=True, loss=Loss(reason, suspects))

    def _end_lost_wait(self) -> None:
        """End what a lost connection still waits for in a Redis that does not know of its loss.

        The claim behind that wait would take requests of which nobody hears. Raises RedisError.
        """
        self._busy_at = time.monotonic()  # whether Redis is back shows soon, and is said
        if not self._client_id:
            return
        try:
            # subtle: its claim has run when the reply is there, so what is asked next sees it.
            self._wire.send(("CLIENT", "UNBLOCK", self._client_id))
            self._wire.reply()
        except ResponseError as error:
            log.debug("a lost wait ends by itself, Redis does not end it: %s", error)

    def _claim(
        self, max_rows: int, max_delay_seconds: float, *, ahead: bool = False
    ) -> PackedCommand:
        is_bulks_turn = self._batches_since_bulk >= BATCHES_BETWEEN_BULK
        claim = max_rows, max_delay_seconds, is_bulks_turn, ahead
        found = self._claims.get(claim)
        if found is None:
            found = self._claims[claim] = PackedCommand.of(*claim_command(self._end, *claim))
        return found

    def _wait_and_claim(
        self, max_rows: int, max_delay_seconds: float, wait_seconds: float
    ) -> list[Claimed]:
        """Block on the bell, or for as long as pending requests may still wait; then claim."""
        claim = self._claim(max_rows, max_delay_seconds)
        if 0 <= wait_seconds < SHORT_WAIT_SECONDS:
            time.sleep(wait_seconds)
            self._wire.send(claim)
            return self._read_batch()[0]
        self._learn_id()
        if wait_seconds >= 0:
            self._wire.send(self._bell, claim)
            if not self._wire.has_reply(min(wait_seconds, LONGEST_BLOCK_SECONDS)):
                self._wake()
        elif self.wakeup is None or time.monotonic() - self._busy_at < WORKLESS_SECONDS:
            self._wire.send(self._bell, claim)
        else:
            self._wire.send(self._idle_bell, claim)
            if not self._wire.has_reply_before(self.wakeup, WORKLESS_BLOCK_SECONDS):
                os.read(self.wakeup, READ_BYTES)
                self._wire.close()  # should it have claimed something, that is put back behind us
                return []
        self._wire.reply()
        return self._read_batch()[0]

    def _learn_id(self) -> None:
        """Ask how Redis calls our connection, by which `_wake` can end its wait."""
        if self._connection != self._wire.connections or not self._wire.is_open:
            self._wire.send(("CLIENT", "ID"))
            self._client_id, self._connection = self._wire.reply(), self._wire.connections

    def _wake(self) -> None:
        """End our own wait for the bell: by itself an idle Redis ends it up to 0.1 s too late."""
        try:
            self._waker.send(("CLIENT", "UNBLOCK", self._client_id))
            self._waker.reply()
        except RedisError as error:
            log.debug("the wait ends by itself, Redis does not end it: %s", error)

    def _read_batch(self) -> tuple[list[Claimed], float, bool]:
        """Return a claim's batch, seconds to wait, and whether there is more in flight."""
        now, wait, *parts = self._wire.reply()
        batch = [
            Claimed.of(ticket, body, abs(now) / 1e6)
            for ticket, body in zip(parts[::2], parts[1::2], strict=True)
        ]
        if self.bodies is not None:
            batch = found_beside(batch, self.bodies)
        self._is_idle = not batch and wait < 0
        if not self._is_idle:
            self._busy_at = time.monotonic()
        if batch:
            has_bulk = max(batch[0].level, batch[-1].level) > self._keys.levels
            self._batches_since_bulk = 0 if has_bulk else self._batches_since_bulk + 1
        self.left_behind = wait if batch else 0
        return batch, wait / 1e6, now < 0
