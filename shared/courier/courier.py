"""Carries one process's requests to Redis and its answers back, for all its threads at once.

System calls and the switches between processes are what a small request costs most, so nobody makes
their own: requests leave together, and one reader takes all answers that are there. Measured
2026-11-21, see docs/performance.md.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable
from threading import Lock, Thread
from typing import Any

from redis.exceptions import RedisError

from shared.courier.collector import Collector
from shared.courier.departures import has_left
from shared.courier.pending import PendingRequest, PushArguments
from shared.courier.sender import Sender
from shared.errors import ClientLeft, FerryError, RequestExpired
from shared.wire.packing import Command
from shared.wire.wire import Wire

log = logging.getLogger(__name__)

RETRY_SECONDS = 0.1
TICK_SECONDS = 0.02
DEPARTURES_SECONDS = 0.2
IDLE_SECONDS = 300.0
"""After so long without a request there are no threads and connections until the next one."""
CANCEL_PAUSES = 20
"""How many times longer than a cancel, which walks the queue, the time to the next one is."""


class Courier:
    """A few connections per process and model version, opened when they are first needed.

    One thread collects answers; another looks for passed deadlines and for clients that left,
    because a timer for every request costs as much as its answer; a third does what these have
    Redis do.
    """

    def __init__(
        self,
        open_wire: Callable[[], Wire],
        push_command: Callable[[list[PushArguments]], Command],
        cancel_command: Callable[..., tuple[Any, ...]],
        answered_key: str,
        result_prefix: str,
    ) -> None:
        """Answers come on the channel `answered_key`, or stored: ids in its list, at a prefix."""
        self._open_wire = open_wire
        self._cancel_command = cancel_command
        self._answered_key = answered_key
        self._result_prefix = result_prefix
        self._sender = Sender(open_wire(), push_command, self._fail)
        self._waiting: dict[str, PendingRequest] = {}
        self._timed: dict[str, PendingRequest] = {}
        self._unwanted: deque[tuple[str, str]] = deque()
        self._starting = Lock()
        self._started = False
        self._shift = 0

    @property
    def waiting(self) -> int:
        """How many requests are under way."""
        return len(self._waiting)

    def carry(self, request: PendingRequest, *, held: bool = False) -> None:
        """Push the request's request, now or soon; one that is `held` at `release`.

        Its `done` is set once there is a result or an error, at the latest soon after its deadline.
        """
        self._waiting[request.id] = request  # first: `_rest` looks at it last
        if not self._started:
            self._start()
        if request.queue_deadline < math.inf:
            self._timed[request.id] = request
        if held:
            self._sender.hold(request)
        else:
            self._sender.send(request)

    def release(self) -> None:
        """Push what was held, in one write."""
        self._sender.release()

    def cancel(self, request: PendingRequest) -> None:
        """Fail a request that nobody waits for any more, and have its request off the queue soon.

        Counted as cancelled. Nothing happens to one that is done. For any thread.
        """
        self._close("cancelled", [request], lambda: ClientLeft("the client hung up"))

    def _start(self) -> None:
        with self._starting:
            if self._started:
                return
            self._started, self._shift = True, self._shift + 1
            self._sender.start()
            for work in (self._collect, self._tick, self._settle):
                name = f"ferry-{work.__name__.strip('_')}"
                Thread(target=work, args=(self._shift,), name=name, daemon=True).start()

    def _rest(self) -> None:
        """End the threads and close the connections, until the next request.

        Versions come and go, and of those that are gone nothing should be left.
        """
        with self._starting:
            self._started, self._shift = False, self._shift + 1
            self._sender.rest()
        if self._waiting:  # one came meanwhile, and found all running
            self._start()

    def _tick(self, shift: int) -> None:
        """Fail what is late or unwanted. Asks nothing of Redis: a deadline holds while it hangs."""
        next_look, busy_at = 0.0, time.monotonic()
        while shift == self._shift:
            time.sleep(TICK_SECONDS)
            now, waiting = time.monotonic(), list(self._waiting.values())
            if waiting or self._unwanted:
                busy_at = now
            elif now - busy_at > IDLE_SECONDS:
                self._rest()
                return
            late = [request for request in waiting if request.deadline <= now]
            self._close("expired", late, lambda: RequestExpired("Request timeout expired"))
            self._note_rejected(now)
            if now >= next_look:
                next_look = now + DEPARTURES_SECONDS
                left = [
                    request for request in waiting if request.client and has_left(request.client)
                ]
                self._close("cancelled", left, lambda: ClientLeft("the client hung up"))

    def _note_rejected(self, now: float) -> None:
        """Have what a queue policy rejects taken off the queue, also while no instance looks at it.

        It may be in a batch by then, so it is failed only once Redis says that it was not.
        """
        for request_id, request in list(self._timed.items()):
            if request.queue_deadline <= now or not request.is_open:
                del self._timed[request_id]
                if request.is_open:
                    self._unwanted.append(("rejected", request_id))

    def _close(
        self, why: str, requests: list[PendingRequest], make_error: Callable[[], FerryError]
    ) -> None:
        """Fail requests, and note that they are to be taken off the queue."""
        for request in requests:
            if self._waiting.pop(request.id, None) is not None:
                self._unwanted.append((why, request.id))
                request.fail(make_error())

    def _settle(self, shift: int) -> None:
        """Read the replies to pushes that nobody read, and take off the queue what is unwanted."""
        wire, next_cancel, next_retry = self._open_wire(), 0.0, 0.0
        while shift == self._shift:
            time.sleep(TICK_SECONDS)
            self._sender.confirm()
            if time.monotonic() >= next_retry:
                next_retry = time.monotonic() + RETRY_SECONDS
                self._sender.retry()
            if self._unwanted and time.monotonic() >= next_cancel:
                began = time.monotonic()
                self._cancel(wire)
                next_cancel = began + CANCEL_PAUSES * (time.monotonic() - began)
        wire.close()

    def _cancel(self, wire: Wire) -> None:
        ids: dict[str, list[str]] = {}
        while self._unwanted:
            why, request_id = self._unwanted.popleft()
            ids.setdefault(why, []).append(request_id)
        try:
            for why, unwanted in ids.items():
                wire.send(self._cancel_command(why, unwanted, only_waiting=why == "rejected"))
                states = wire.reply()
                if why == "rejected":
                    self._reject(unwanted, states)
        except RedisError as failure:
            log.info("requests stay on the queue until they are claimed, Redis fails: %s", failure)

    def _reject(self, ids: list[str], states: list[bytes]) -> None:
        for request_id, state in zip(ids, states, strict=True):
            request = self._waiting.get(request_id)
            if request is not None and state == b"waiting":
                self._fail(request, RequestExpired("Request timeout expired"))

    def _fail(self, request: PendingRequest, error: FerryError) -> None:
        if self._waiting.pop(request.id, None) is not None:
            request.fail(error)

    def _collect(self, shift: int) -> None:
        """Have answers collected, whatever happens to Redis."""
        collector = Collector(
            self._open_wire,
            self._answered_key,
            self._result_prefix,
            self._waiting,
            self._sender.send_again,
        )
        told = ""
        while shift == self._shift:
            try:
                collector.collect()
                if told:
                    log.info("Redis is back, %d requests wait on", len(self._waiting))
                    told = ""
            except Exception as error:  # a border: nothing would be answered any more
                if told != repr(error):
                    told = repr(error)
                    log.warning("answers are slow, trying until Redis is back: %s", error)
                collector.hang_up()
                time.sleep(RETRY_SECONDS)
        collector.close()
