"""Carries one process's requests to Redis and its answers back, for all its threads at once.

fast: system calls and the switches between processes are what a small request costs most, so nobody
makes their own: requests leave together, and one reader takes all answers that are there. Measured
2026-11-21, see docs/measurements.md.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from threading import Lock, Thread
from typing import Any

from shared.bodies.stored import OwnBodies
from shared.courier.cancels import Cancels
from shared.courier.collector import Collector
from shared.courier.deadlines import Deadlines
from shared.courier.pending import PendingRequest, PushArguments
from shared.courier.sender import Sender
from shared.errors import ClientLeft, FerryError
from shared.wire.packing import Command
from shared.wire.wire import Wire

log = logging.getLogger(__name__)

CHECK_SECONDS = 0.02
"""The interval at which deadlines are checked, unread replies read and cancels sent."""
PUSH_AGAIN_SECONDS = 0.1
RECONNECT_SECONDS = 0.1
IDLE_SECONDS = 300.0
"""After so long without a request there are no threads and connections until the next one."""


class Courier:
    """Four threads, or five, and four connections per model version, started by the first request.

    Its threads, besides those that ask and wait:

        asker -- carry --> Sender.outbox -- whoever has the token: asker, send --> wire 1: push
                                            ferry-cancel: unread replies --^
        ferry-send      sends what came while another thread was sending
        ferry-check     every 20 ms, without Redis: deadlines, clients that left --> Cancels
        ferry-cancel    every 20 ms: reads replies (wire 1), retries, sends Cancels --> wire 2
        ferry-collect   hears answers on wire 3, under gevent by way of its event loop, and fetches
                        stored ones on wire 4 --> PendingRequest.answer, which wakes the asker
        ferry-fetch     where there are body stores: reads answers there, removes what is not needed

    A request's states; it is in `_waiting` from `expect` until it is done, and whoever takes it out
    of there ends it, once. An answer may come before the reply that says `accepted`:

        held, in the outbox --> sent --> accepted --------- an answer ----------------> done
          |                      |          |   ^
          |                      |          v   | pushed again: known, or stored anew
          |                      |       perhaps lost, after a lost connection
          |                      |
          +----------------------+--> refused (full, closed, Redis fails), expired, cancelled,
                                      rejected by its queue policy: an error ---------> done
    """

    def __init__(
        self,
        open_wire: Callable[[], Wire],
        push_command: Callable[[list[PushArguments]], Command],
        cancel_command: Callable[..., tuple[Any, ...]],
        collect_command: Callable[[list[str]], Command],
        answered_key: str,
        bodies: OwnBodies = OwnBodies(),  # noqa: B008, it is frozen
    ) -> None:
        """Answers come on the channel `answered_key`, or stored: `collect_command` takes those.

        What lies beside Redis is among `bodies`.
        """
        self._open_wire = open_wire
        self._answered_key = answered_key
        self._collect_command = collect_command
        self._bodies = bodies
        self._waiting: dict[str, PendingRequest] = {}
        self._cancels = Cancels(self._waiting, cancel_command)
        self._deadlines = Deadlines(self._waiting, self._cancels)
        self.sender = Sender(open_wire(), push_command, self._refuse)
        self._starting = Lock()
        self._started = False
        # A thread ends when this has changed: those of an earlier start are told from ours by it.
        self._generation = 0

    @property
    def waiting(self) -> int:
        """The number of requests under way."""
        return len(self._waiting)

    def waiting_as(self, is_wanted: Callable[[PushArguments], bool]) -> int:
        """Return how many of them are wanted; looks at each."""
        return sum(is_wanted(request.push) for request in list(self._waiting.values()))

    def carry(self, request: PendingRequest, *, held: bool = False) -> None:
        """Push the request, now or soon; one that is `held` at `release`.

        Its `done` is set once there is a result or an error, at the latest soon after its deadline.
        """
        self.expect(request)
        self.push(request, held=held)

    def expect(self, request: PendingRequest) -> None:
        """Have the request among the waiting, and look at its deadline and its client."""
        self._waiting[request.id] = request  # first: `rest` looks at it last
        if not self._started:
            self._start()
        self._deadlines.watch(request)

    def withdraw(self, request: PendingRequest) -> None:
        """Forget a request that was expected and is not to be pushed: nobody waits for it."""
        self._waiting.pop(request.id, None)

    def push(self, request: PendingRequest, *, held: bool = False) -> None:
        """Push a request that was expected, if it is still open."""
        if held:
            self.sender.hold(request)
        else:
            self.sender.send(request)

    def release(self) -> None:
        """Push the requests that are held, in one write."""
        self.sender.release()

    def cancel(self, request: PendingRequest) -> None:
        """Fail a request that nobody waits for any more, and take it off the queue soon.

        Counted as cancelled. Nothing happens to one that is done. For any thread.
        """
        self._cancels.close("cancelled", [request], lambda: ClientLeft("the client hung up"))

    def rest(self) -> None:
        """Close the threads and connections of an idle version, until its next request."""
        with self._starting:
            self._started, self._generation = False, self._generation + 1
            self.sender.rest()
        if self._waiting:  # one came meanwhile, and found all running
            self._start()

    def _start(self) -> None:
        with self._starting:
            if self._started:  # by another thread, while this one waited for the lock
                return
            self._started, self._generation = True, self._generation + 1
            self.sender.start()
            for name, work in (
                ("ferry-collect", self._collect_forever),
                ("ferry-check", self._check_forever),
                ("ferry-cancel", self._cancel_forever),
            ):
                Thread(target=work, args=(self._generation,), name=name, daemon=True).start()

    def _check_forever(self, generation: int) -> None:
        """Fail late and unwanted requests, and rest when none was under way for long."""
        busy_at = time.monotonic()
        while generation == self._generation:
            time.sleep(CHECK_SECONDS)
            now = time.monotonic()
            if self._waiting or not self._cancels.is_empty:  # Redis is still to hear of these
                busy_at = now
            elif now - busy_at > IDLE_SECONDS:
                self.rest()
                return
            self._deadlines.check(now)

    def _cancel_forever(self, generation: int) -> None:
        """Read the replies to pushes, retry pushes, and take closed requests off the queue.

        A thread of its own: it waits for Redis, and deadlines must not.
        """
        wire, next_retry = self._open_wire(), 0.0
        while generation == self._generation:
            time.sleep(CHECK_SECONDS)
            self.sender.confirm()
            if time.monotonic() >= next_retry:
                next_retry = time.monotonic() + PUSH_AGAIN_SECONDS
                self.sender.retry()
            self._cancels.send(wire)
            if self._bodies.folder is not None:
                self._bodies.folder.sweep(self._waiting)
        wire.close()

    def _collect_forever(self, generation: int) -> None:
        """Collect answers, whatever happens to Redis."""
        collector = Collector(
            self._open_wire,
            self._answered_key,
            self._collect_command,
            self._waiting,
            self.sender.send_again,
            self._bodies,
        )
        logged = ""
        while generation == self._generation:
            try:
                collector.collect()
                if logged:
                    log.info("Redis is back, %d requests wait on", len(self._waiting))
                    logged = ""
            except Exception as error:  # a border: nothing would be answered any more
                if logged != repr(error):  # one line for an outage, not ten a second
                    logged = repr(error)
                    log.warning("answers are slow, trying until Redis is back: %s", error)
                collector.hang_up()
                time.sleep(RECONNECT_SECONDS)
        collector.close()

    def _refuse(self, request: PendingRequest, error: FerryError) -> None:
        self._cancels.fail(request, error)
