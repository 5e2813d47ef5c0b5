"""Collects the answers to one process's requests: said on a channel, or stored in Redis."""

from __future__ import annotations

import time
from collections.abc import Callable

from redis.exceptions import RedisError

from shared.bodies.folder import BodyFolder
from shared.courier.pending import LOST_BODY, PendingRequest
from shared.courier.subscription import QUIET_SECONDS, Subscription, answers_in
from shared.errors import BodyLost
from shared.messages import BESIDE_REDIS
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
        folder: BodyFolder | None = None,
    ) -> None:
        """Answer those `waiting`, by id; `push_again` gets those whose request may be lost.

        Answers come on the channel `answered_key`, or stored: `collect_command` takes those. What
        lies beside them is taken from the `folder`.
        """
        self._subscription = Subscription(open_wire(), answered_key)
        self._wire = open_wire()
        self._collect_command = collect_command
        self._waiting = waiting
        self._push_again = push_again
        self._folder = folder
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

    def _listen(self) -> None:
        """Open the subscription, and push again soon the requests that stay unanswered.

        It may be gone, or its answer: it is stored, and run, again; a known id is left as it is.
        """
        self._subscription.open()
        # The ids that were announced may have been taken by a connection that broke: ask for all.
        self._fetch(list(self._waiting))
        # Its reply ends the next `wait`, behind all that was said since: only then is pushed again.
        self._subscription.ask()
        self._possibly_lost = list(self._waiting.values())
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
        request = self._waiting.get(request_id)
        if request is None or self._folder is None:
            return
        found = None if result == LOST_BODY else self._folder.take(request_id, result)
        if found is not None:
            if self._waiting.pop(request_id, None) is not None:
                request.answer(result, found)
        elif request.lose():
            self._push_again([request])
        elif self._waiting.pop(request_id, None) is not None:
            request.fail(BodyLost.default())
