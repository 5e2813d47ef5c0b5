"""Pushes one process's requests of one model: many in one write, without waiting for the replies.

fast: a request that finds nobody sending is sent by its own thread, which at low load saves two
switches between threads; those that come meanwhile are left to a thread that sends all there is at
once. The replies to earlier writes are read before the next one while anything of the last is open,
which is what lets requests gather under load; else soon by `confirm`, many at once: waiting for
each would wake the process once more for every request.
"""

from __future__ import annotations

import itertools
import logging
from collections import deque
from collections.abc import Callable, Iterable
from threading import Event, Thread

from redis.exceptions import RedisError, ResponseError

from shared.courier.pending import PendingRequest, PushArguments
from shared.errors import FerryError, QueueFull, VersionRetired
from shared.wire.client import NotTheMaster, unavailable
from shared.wire.outage import Outage
from shared.wire.packing import Command
from shared.wire.wire import Wire

log = logging.getLogger(__name__)

MAX_REQUESTS_PER_WRITE = 256
MAX_BYTES_PER_WRITE = 16 * 2**20
"""No request is added to so much: Redis drops who sends more than a gigabyte in one command."""
MAX_UNREAD_REPLIES = 64
"""So many are read at the latest, however soon requests are answered."""


class Sender:
    """One connection that only pushes. A push sent twice is known by its id and changes nothing.

    A request is on one of three lists until it is accepted, refused or done by other means:

                              written                reply: queued, known
        send ----> outbox -----------> unconfirmed ---------------------> accepted
        hold        ^  ^                |  |  |
                    |  |                |  |  +-- full, closed, an error --> refused
                    |  |                |  |
                    |  |                |  +-- the connection is lost: written once more at once
                    |  +--- retry ---- to_retry <- Redis fails again, or refuses now what it has
                    |                              had before: it may be stored, or lost
                    +--- send_again: accepted, but perhaps lost since

    Only the thread with the token takes from `outbox` and touches `unconfirmed` and the wire.
    """

    def __init__(
        self,
        wire: Wire,
        push_command: Callable[[list[PushArguments]], Command],
        refuse: Callable[[PendingRequest, FerryError], None],
    ) -> None:
        """Push by `push_command`; `refuse` is told of every request that was not accepted."""
        self._wire = wire
        self._push_command = push_command
        self._refuse = refuse
        self.outbox: deque[PendingRequest] = deque()
        self.unconfirmed: deque[list[PendingRequest]] = deque()
        self.to_retry: list[PendingRequest] = []
        # fast: whoever pops the token sends. A deque is a lock at a tenth of gevent's Lock.
        self._sending_token = deque([None])
        self._more = Event()
        self._generation = 0
        self._outage = Outage(log)

    @property
    def is_idle(self) -> bool:
        """Tell whether nobody sends, nothing is to be sent and no reply is to be read."""
        return bool(self._sending_token) and not self.outbox and not self.unconfirmed

    def start(self) -> None:
        """Start the thread that sends the requests which came while another was sending."""
        self._generation += 1
        Thread(
            target=self._send_waiting, args=(self._generation,), name="ferry-send", daemon=True
        ).start()

    def rest(self) -> None:
        """End that thread and close the connection, which the next request opens anew."""
        self._generation += 1
        self._more.set()
        self._with_token(self._hang_up)

    def _hang_up(self) -> None:
        self._confirm()
        self._wire.close()

    def send(self, request: PendingRequest) -> None:
        """Push a request, now or soon."""
        self.outbox.append(request)
        self._with_token(self._send_some)

    def hold(self, request: PendingRequest) -> None:
        """Push a request with the next `release`, or with another request before it."""
        self.outbox.append(request)

    def release(self) -> None:
        """Push the requests that are held, now or soon."""
        self._with_token(self._send_some)

    def send_again(self, requests: Iterable[PendingRequest]) -> None:
        """Push requests once more, soon, since Redis may have lost them."""
        self.outbox.extend(requests)
        self._more.set()

    def retry(self) -> None:
        """Retry pushes whose outcome is unknown."""
        again, self.to_retry = {request.id: request for request in self.to_retry}, []
        if again:
            self.send_again(again.values())

    def confirm(self) -> None:
        """Read the replies to all writes so far that nobody has read yet."""
        if self.unconfirmed:
            self._with_token(self._confirm)

    def _send_waiting(self, generation: int) -> None:
        while generation == self._generation:
            self._more.wait()
            self._more.clear()
            self._with_token(self._send_some)

    def _with_token(self, work: Callable[[], None]) -> None:
        """Run `work`, unless another thread has the token: that one does it as well.

        subtle: whoever had it looks at the outbox again after giving it back, since another may
        have put something there and found no token meanwhile.
        """
        try:
            self._sending_token.pop()
        except IndexError:
            return
        try:
            work()
        finally:
            self._sending_token.append(None)
        if self.outbox:
            self._more.set()

    def _send_some(self) -> None:
        # While the last write is open its reply is waited for, which lets requests gather.
        if self.unconfirmed and (
            len(self.unconfirmed) >= MAX_UNREAD_REPLIES
            or any(request.is_open for request in self.unconfirmed[-1])
        ):
            self._confirm()
        requests, size = list[PendingRequest](), 0
        while self.outbox and len(requests) < MAX_REQUESTS_PER_WRITE and size < MAX_BYTES_PER_WRITE:
            request = self.outbox.popleft()
            if request.is_open:  # else it was cancelled, or answered, meanwhile
                requests.append(request)
                size += request.push.size
        if requests:
            self._write(requests)

    def _write(self, requests: list[PendingRequest]) -> None:
        try:
            self._send(self._push_command([request.push for request in requests]))
            self.unconfirmed.append(requests)
            for request in requests:
                request.sent = True
        except RedisError as error:
            self._give_up(requests, error)

    def _send(self, command: Command) -> None:
        """Write on the open connection, which Redis may have left since, or on a new one."""
        try:
            self._wire.send_behind(command)
        except RedisError:
            self._confirm()  # pushes again what is open of the writes before
            self._wire.send_behind(command)

    def _confirm(self) -> None:
        """Read the replies to all writes so far; push open requests of lost ones again."""
        while self.unconfirmed:
            requests = self.unconfirmed.popleft()
            try:
                self._note(requests, self._wire.reply())
            except ResponseError as error:
                self._refuse_all(requests, error)
            except RedisError:
                self._push_again([*requests, *itertools.chain.from_iterable(self.unconfirmed)])
                return

    def _push_again(self, requests: list[PendingRequest]) -> None:
        """Write the open ones of these requests once more, once, and wait for the reply."""
        self.unconfirmed.clear()
        # Of what was answered since, Redis no longer knows that it had it.
        requests = [request for request in requests if request.is_open]
        if not requests:
            return
        try:
            self._wire.send(self._push_command([request.push for request in requests]))
            self._note(requests, self._wire.reply())
        except (ResponseError, NotTheMaster) as error:
            self._refuse_all(requests, error)
        except RedisError as error:
            self._give_up(requests, error)

    def _refuse_all(self, requests: list[PendingRequest], error: RedisError) -> None:
        for request in requests:
            if request.accepted:  # it was being pushed again, since Redis may have lost it
                self.to_retry.append(request)
            else:
                self._refuse(request, unavailable(error))

    def _note(self, requests: list[PendingRequest], statuses: list[bytes]) -> None:
        self._outage.end()
        for request, status in zip(requests, statuses, strict=True):
            if status.startswith(b"full") and request.accepted:  # it was, and came again
                self.to_retry.append(request)
            elif status.startswith(b"full"):
                self._refuse(request, QueueFull.with_waiting(int(status.split()[1])))
            elif status == b"closed":
                self._refuse(request, VersionRetired.default())
            else:
                request.accepted = True

    def _give_up(self, requests: list[PendingRequest], error: RedisError) -> None:
        refused = [request for request in requests if not request.sent]
        # What was sent may be stored: it is pushed again until Redis says something of it.
        self.to_retry += [request for request in requests if request.sent]
        if refused:
            self._outage.note(error, "requests are refused, each next one is tried")
        for request in refused:
            self._refuse(request, unavailable(error))
