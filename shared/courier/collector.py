"""Collects the answers to one process's requests: said on a channel, or stored in Redis."""

from __future__ import annotations

import time
from collections.abc import Callable

from redis.exceptions import RedisError

from shared.bodies.stored import OwnBodies
from shared.courier.fetcher import Fetcher
from shared.courier.pending import LOST_BODY, PendingRequest
from shared.courier.subscription import QUIET_SECONDS, Subscription, answers_in
from shared.errors import BodyLost
from shared.messages import BESIDE_REDIS, lies_in_memory
from shared.wire.packing import Command
from shared.wire.wire import Wire


class Collector:
    """One subscription, and a connection beside it for stored answers; for one thread."""

    def __init__(
        self,
        open_wire: Callable[[], Wire],
        answered_key: str,
        collect_command: Callable[[list[str]], Command],
        waiting: dict[str, PendingRequest],
        push_again: Callable[[list[PendingRequest]], None],
        bodies: OwnBodies = OwnBodies(),  # noqa: B008, it is frozen
    ) -> None:
        """Answer those `waiting`, by id; `push_again` gets those whose request may be lost.

        Answers come on the channel `answered_key`, or stored: `collect_command` takes those. What
        lies beside them is among `bodies`; out of stores another thread takes it.
        """
        self._subscription = Subscription(open_wire(), answered_key)
        self._wire = open_wire()
        self._collect_command = collect_command
        self._waiting = waiting
        self._push_again = push_again
        self._folder, self._shelf = bodies
        self._fetcher = Fetcher(bodies.shelf, self._end_beside) if bodies.shelf else None
        self._possibly_lost: list[PendingRequest] = []
        self._push_again_at = 0.0
        self._is_first = True

    def collect(self) -> None:
        """Hand out answers as they come, for half a second; raises RedisError.

        After a lost connection also those that were stored meanwhile.
        """
        if not self._subscription.is_open:
            self._listen()
        self._subscription.wait(self._take)
        self._fetch([])
        if self._possibly_lost and time.monotonic() >= self._push_again_at:
            lost, self._possibly_lost = self._possibly_lost, []
            self._push_again([request for request in lost if request.is_open])

    def hang_up(self) -> None:
        """Close the subscription, until the next `collect` opens another."""
        self._subscription.close()

    def close(self) -> None:
        """Close both connections."""
        self._subscription.close()
        self._wire.close()
        if self._fetcher is not None:
            self._fetcher.close()

    def _listen(self) -> None:
        """Open the subscription, and push again soon the requests that stay unanswered.

        It may be gone, or its answer: it is stored, and run, again; a known id is left as it is.
        """
        self._subscription.open()
        # The ids that were announced may have been taken by a connection that broke: ask for all.
        self._fetch(list(self._waiting))
        # Its reply ends the next `wait`, behind all that was said since: only then is pushed again.
        self._subscription.ask()
        waiting = list(self._waiting.values())
        self._possibly_lost = [request for request in waiting if not request.is_being_placed]
        # The first time nothing is lost, as a rule: answers that came before anybody listened are
        # stored, and found within this time.
        self._push_again_at = time.monotonic() + (QUIET_SECONDS if self._is_first else 0.0)
        self._is_first = False

    def _take(self, said: bytes) -> None:
        """Hand out the answers in a message."""
        for request_id, result in answers_in(said):
            self._answer(request_id, result)

    def _fetch(self, ids: list[str]) -> None:
        """Take the stored answers: those that Redis has noted for us, and to these ids."""
        command = self._collect_command(ids)
        try:
            self._wire.send(command)
        except RedisError:  # it may have left the connection since
            self._wire.send(command)
        found = self._wire.reply()
        for request_id, result in zip(found[::2], found[1::2], strict=True):
            self._answer(request_id.decode(), result)

    def _answer(self, request_id: str, result: bytes) -> None:
        if result[:1] == BESIDE_REDIS or result == LOST_BODY:
            self._answer_beside(request_id, result)
            return
        request = self._waiting.pop(request_id, None)
        if request is not None:
            request.answer(result)

    def _answer_beside(self, request_id: str, result: bytes) -> None:
        """Answer with what lies beside the result, or ask again: something was lost beside Redis.

        The request stays among the waiting meanwhile, its deadline holds.
        """
        is_waiting = request_id in self._waiting
        if result == LOST_BODY:
            self._end_beside(request_id, result, None)
        elif lies_in_memory(result):
            if is_waiting and self._folder is not None:
                self._end_beside(request_id, result, self._folder.take(request_id, result))
        elif self._shelf is not None and self._fetcher is not None:
            if is_waiting:
                self._fetcher.add(request_id, result)
            else:
                self._shelf.forget(request_id, result)

    def _end_beside(self, request_id: str, result: bytes, found: memoryview | None) -> None:
        """Answer a request that waits with what was found, or push it again; for any thread."""
        request = self._waiting.get(request_id)
        if request is None:
            return
        if found is not None:
            if self._waiting.pop(request_id, None) is not None:
                request.answer(result, found)
            return
        if self._shelf is not None:
            self._shelf.pause()
            if result != LOST_BODY:
                self._shelf.forget(request_id, result)
        if request.lose():
            self._push_again([request])
        elif self._waiting.pop(request_id, None) is not None:
            request.fail(BodyLost.default())
