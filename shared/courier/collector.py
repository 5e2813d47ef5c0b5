"""Takes the answers to one process's requests: those that Redis says, and those that it stores."""

from __future__ import annotations

import time
from collections.abc import Callable

from redis.exceptions import RedisError

from shared.courier.pending import PendingRequest
from shared.courier.subscription import QUIET_SECONDS, Subscription, answers_in
from shared.wire.scripts import script_digest
from shared.wire.wire import Wire


class Collector:
    """One subscription, and a connection beside it for what is stored; for one thread."""

    def __init__(
        self,
        open_wire: Callable[[], Wire],
        answered_key: str,
        result_prefix: str,
        waiting: dict[str, PendingRequest],
        push_again: Callable[[list[PendingRequest]], None],
    ) -> None:
        """Answer those `waiting`, by id; `push_again` gets those whose request may be lost.

        Answers come on the channel `answered_key`, or stored: ids in its list, at a prefix.
        """
        self._subscription = Subscription(open_wire(), answered_key)
        self._wire = open_wire()
        self._answered_key = answered_key
        self._result_prefix = result_prefix
        self._waiting = waiting
        self._push_again = push_again
        self._doubts: list[PendingRequest] = []
        self._doubtful_until = 0.0
        self._is_first = True

    def collect(self) -> None:
        """Take answers as they come, for half a second; raises RedisError.

        After a lost connection, all that are there.
        """
        if not self._subscription.is_open:
            self._listen()
        self._subscription.wait(self._take)
        self._fetch([])
        if self._doubts and time.monotonic() >= self._doubtful_until:
            doubts, self._doubts = self._doubts, []
            self._push_again([request for request in doubts if request.is_open])

    def hang_up(self) -> None:
        """Stop to listen, until the next `collect`."""
        self._subscription.close()

    def close(self) -> None:
        """Close both connections."""
        self._subscription.close()
        self._wire.close()

    def _listen(self) -> None:
        """Listen, and have doubts about what was pushed before and is not answered soon.

        It may be gone, or its answer: it is stored, and run, again; a known id is left as it is.
        """
        self._subscription.open()
        self._fetch(list(self._waiting))
        self._subscription.ask()
        self._doubts = list(self._waiting.values())
        self._doubtful_until = time.monotonic() + QUIET_SECONDS * self._is_first
        self._is_first = False

    def _take(self, said: bytes) -> None:
        """Hand out the answers that a message brings."""
        for request_id, result in answers_in(said):
            self._answer(request_id, result)

    def _fetch(self, ids: list[str]) -> None:
        """Take the stored answers: those that Redis has noted for us, and to these ids."""
        key = self._answered_key
        command = ("EVALSHA", script_digest("collect"), 1, key, self._result_prefix, *ids)
        try:
            self._wire.send(command)
        except RedisError:  # it may have left the connection since
            self._wire.send(command)
        found = self._wire.reply()
        for request_id, result in zip(found[::2], found[1::2], strict=True):
            self._answer(request_id.decode(), result)

    def _answer(self, request_id: str, result: bytes) -> None:
        request = self._waiting.pop(request_id, None)
        if request is not None:
            request.answer(result)
