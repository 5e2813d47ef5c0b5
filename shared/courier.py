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

from redis.exceptions import RedisError, ResponseError

from shared.departures import has_left
from shared.errors import ClientLeft, FerryError, RequestExpired
from shared.parcels import Parcel, Push
from shared.redis_connection import LONGEST_BLOCK_SECONDS, Wire, script_digest
from shared.sender import Sender

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
        push_command: Callable[[list[Push]], tuple[Any, ...]],
        cancel_command: Callable[..., tuple[Any, ...]],
        answered_key: str,
        result_prefix: str,
    ) -> None:
        """Announcements come on `answered_key`, results are on `result_prefix` + id."""
        self._open_wire = open_wire
        self._cancel_command = cancel_command
        self._answered_key = answered_key
        self._result_prefix = result_prefix
        self._sender = Sender(open_wire(), push_command, self._fail)
        self._waiting: dict[str, Parcel] = {}
        self._timed: dict[str, Parcel] = {}
        self._unwanted: deque[tuple[str, str]] = deque()
        self._starting = Lock()
        self._started = False
        self._shift = 0

    @property
    def waiting(self) -> int:
        """How many parcels are under way."""
        return len(self._waiting)

    def carry(self, parcel: Parcel, *, held: bool = False) -> None:
        """Push the parcel's request, now or soon; one that is `held` at `release`.

        Its `done` is set once there is a result or an error, at the latest soon after its deadline.
        """
        self._waiting[parcel.push.id] = parcel  # first: `_rest` looks at it last
        if not self._started:
            self._start()
        if parcel.queue_deadline < math.inf:
            self._timed[parcel.push.id] = parcel
        if held:
            self._sender.hold(parcel)
        else:
            self._sender.send(parcel)

    def release(self) -> None:
        """Push what was held, in one write."""
        self._sender.release()

    def take_back(self, parcel: Parcel) -> None:
        """Fail a parcel that nobody waits for any more, and have its request off the queue soon.

        Counted as cancelled. Nothing happens to one that is done. For any thread.
        """
        self._close("cancelled", [parcel], lambda: ClientLeft("the client hung up"))

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
        """End the threads and close the connections, until the next parcel.

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
            late = [parcel for parcel in waiting if parcel.deadline <= now]
            self._close("expired", late, lambda: RequestExpired("Request timeout expired"))
            self._note_rejected(now)
            if now >= next_look:
                next_look = now + DEPARTURES_SECONDS
                left = [parcel for parcel in waiting if parcel.client and has_left(parcel.client)]
                self._close("cancelled", left, lambda: ClientLeft("the client hung up"))

    def _note_rejected(self, now: float) -> None:
        """Have what a queue policy rejects taken off the queue, also while no instance looks at it.

        It may be in a batch by then, so it is failed only once Redis says that it was not.
        """
        for request_id, parcel in list(self._timed.items()):
            if parcel.queue_deadline <= now or not parcel.is_open:
                del self._timed[request_id]
                if parcel.is_open:
                    self._unwanted.append(("rejected", request_id))

    def _close(self, why: str, parcels: list[Parcel], make_error: Callable[[], FerryError]) -> None:
        """Fail parcels, and note that they are to be taken off the queue."""
        for parcel in parcels:
            if self._waiting.pop(parcel.push.id, None) is not None:
                self._unwanted.append((why, parcel.push.id))
                parcel.fail(make_error())

    def _settle(self, shift: int) -> None:
        """Read the replies to pushes that nobody read, and take off the queue what is unwanted."""
        wire, next_cancel = self._open_wire(), 0.0
        while shift == self._shift:
            time.sleep(TICK_SECONDS)
            self._sender.confirm()
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
            parcel = self._waiting.get(request_id)
            if parcel is not None and state == b"waiting":
                self._fail(parcel, RequestExpired("Request timeout expired"))

    def _fail(self, parcel: Parcel, error: FerryError) -> None:
        if self._waiting.pop(parcel.push.id, None) is not None:
            parcel.fail(error)

    def _collect(self, shift: int) -> None:
        """Take answers as they are announced; after a lost connection, all that are there."""
        key, wire, lost = self._answered_key, self._open_wire(), False
        # BLMOVE onto itself waits for an announcement without taking it: what is lost on the way
        # to a process that cannot read it is still there for its next attempt.
        wait = ("BLMOVE", key, key, "LEFT", "LEFT", LONGEST_BLOCK_SECONDS)
        collect = ("EVALSHA", script_digest("collect"), 1, key, self._result_prefix)
        told = ""
        while shift == self._shift:
            try:
                if lost:
                    self._resume(wire, collect)
                    lost = False
                wire.send(wait, collect)
                refusal = _refusal(wire)
                self._hand_out(wire.reply())
                if refusal is not None:
                    raise refusal
                if told:
                    log.info("Redis is back, %d requests wait on", len(self._waiting))
                    told = ""
                # Those who were just given their answer go first, the next wait can wait.
                time.sleep(0)
            except RedisError as error:
                if told != str(error):
                    told = str(error)
                    log.warning("answers are slow, Redis fails, trying until it is back: %s", told)
                lost = True
                time.sleep(RETRY_SECONDS)
        wire.close()

    def _resume(self, wire: Wire, collect: tuple[Any, ...]) -> None:
        """Take every answer that is there, and push again what may be gone; a known id is left."""
        wire.send((*collect, *list(self._waiting)))
        self._hand_out(wire.reply())
        self._sender.send_again(list(self._waiting.values()))

    def _hand_out(self, found: list[bytes]) -> None:
        for request_id, result in zip(found[::2], found[1::2], strict=True):
            parcel = self._waiting.pop(request_id.decode(), None)
            if parcel is not None:
                parcel.answer(result)


def _refusal(wire: Wire) -> ResponseError | None:
    """Read a reply; return its error, for the next reply is to be read in any case.

    At its memory limit Redis refuses to wait, but what follows has taken answers: lost if unread.
    """
    try:
        wire.reply()
    except ResponseError as error:
        return error
    return None
