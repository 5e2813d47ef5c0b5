"""Pushes one process's requests of one model: many in one write, without waiting for the replies.

A request that finds nobody sending is sent by its own thread, which at low load saves two switches
between threads; those that come meanwhile are left to a thread that sends all there is at once. The
replies to earlier writes are read before the next one while anything of the last is open, which is
what lets requests gather under load; else soon by `confirm`, many at once: waiting for each would
wake the process once more for every request.
"""

from __future__ import annotations

import itertools
import logging
from collections import deque
from collections.abc import Callable, Iterable
from threading import Event, Thread

from redis.exceptions import RedisError, ResponseError

from shared.courier.pending import Parcel, Push
from shared.errors import FerryError, QueueFull, VersionRetired
from shared.wire.client import unavailable
from shared.wire.packing import Command
from shared.wire.wire import Wire

log = logging.getLogger(__name__)

MAX_PARCELS_PER_WRITE = 256
MAX_BYTES_PER_WRITE = 16 * 2**20
"""No request is added to so much: Redis drops who sends more than a gigabyte in one command."""
MAX_UNREAD_REPLIES = 64
"""So many are read at the latest, however soon requests are answered."""


class Sender:
    """One connection that only pushes. A push sent twice is known by its id and changes nothing."""

    def __init__(
        self,
        wire: Wire,
        push_command: Callable[[list[Push]], Command],
        refuse: Callable[[Parcel, FerryError], None],
    ) -> None:
        """Push by `push_command`; `refuse` is told of every parcel that was not accepted."""
        self._wire = wire
        self._push_command = push_command
        self._refuse = refuse
        self._outbox: deque[Parcel] = deque()
        self._unconfirmed: deque[list[Parcel]] = deque()
        self._owed: list[Parcel] = []
        # Whoever pops the token sends. A deque does it atomically, at a tenth of gevent's Lock.
        self._turn = deque([None])
        self._more = Event()
        self._shift = 0

    def start(self) -> None:
        """Start the thread that sends what comes while another is sending."""
        self._shift += 1
        Thread(
            target=self._send_waiting, args=(self._shift,), name="ferry-send", daemon=True
        ).start()

    def rest(self) -> None:
        """End that thread and close the connection, which the next parcel opens anew."""
        self._shift += 1
        self._more.set()
        self._take_turn(self._hang_up)

    def _hang_up(self) -> None:
        self._confirm()
        self._wire.close()

    def send(self, parcel: Parcel) -> None:
        """Push the parcel's request, now or soon."""
        self._outbox.append(parcel)
        self._take_turn(self._send_some)

    def hold(self, parcel: Parcel) -> None:
        """Push the parcel's request with the next `release`, or with another request before it."""
        self._outbox.append(parcel)

    def release(self) -> None:
        """Push what is held, now or soon."""
        self._take_turn(self._send_some)

    def send_again(self, parcels: Iterable[Parcel]) -> None:
        """Push requests once more, soon, since Redis may have lost them."""
        self._outbox.extend(parcels)
        self._more.set()

    def retry(self) -> None:
        """Push again what Redis may have, or may have lost, and did not take when it came again."""
        owed, self._owed = {parcel.push.id: parcel for parcel in self._owed}, []
        if owed:
            self.send_again(owed.values())

    def confirm(self) -> None:
        """Read the replies to all writes so far that nobody has read yet."""
        if self._unconfirmed:
            self._take_turn(self._confirm)

    def _send_waiting(self, shift: int) -> None:
        while shift == self._shift:
            self._more.wait()
            self._more.clear()
            self._take_turn(self._send_some)

    def _take_turn(self, work: Callable[[], None]) -> None:
        """Do the work, unless somebody else has the turn.

        Whoever had it looks at the outbox again after giving it up: nothing is forgotten.
        """
        try:
            self._turn.pop()
        except IndexError:
            return
        try:
            work()
        finally:
            self._turn.append(None)
        if self._outbox:
            self._more.set()

    def _send_some(self) -> None:
        if self._unconfirmed and (
            len(self._unconfirmed) >= MAX_UNREAD_REPLIES
            or any(parcel.is_open for parcel in self._unconfirmed[-1])
        ):
            self._confirm()
        parcels, size = list[Parcel](), 0
        while self._outbox and len(parcels) < MAX_PARCELS_PER_WRITE and size < MAX_BYTES_PER_WRITE:
            parcel = self._outbox.popleft()
            if parcel.is_open:  # else it was taken back, or answered, meanwhile
                parcels.append(parcel)
                size += parcel.push.size
        if parcels:
            self._write(parcels)

    def _write(self, parcels: list[Parcel]) -> None:
        try:
            self._send(self._push_command([parcel.push for parcel in parcels]))
            self._unconfirmed.append(parcels)
            for parcel in parcels:
                parcel.sent = True
        except RedisError as error:
            self._give_up(parcels, error)

    def _send(self, command: Command) -> None:
        """Write on the open connection, which Redis may have left since, or on a new one."""
        try:
            self._wire.send_behind(command)
        except RedisError:
            self._confirm()  # pushes again what is open of the writes before
            self._wire.send_behind(command)

    def _confirm(self) -> None:
        """Read what became of the writes so far; what a lost connection leaves open goes again."""
        while self._unconfirmed:
            parcels = self._unconfirmed.popleft()
            try:
                self._note(parcels, self._wire.reply())
            except ResponseError as error:
                self._refuse_all(parcels, error)
            except RedisError:
                self._push_again([*parcels, *itertools.chain.from_iterable(self._unconfirmed)])
                return

    def _push_again(self, parcels: list[Parcel]) -> None:
        """Write what is open of these once more, once, and wait for the reply."""
        self._unconfirmed.clear()
        # Of what was answered since, Redis no longer knows that it had it.
        parcels = [parcel for parcel in parcels if parcel.is_open]
        if not parcels:
            return
        try:
            self._wire.send(self._push_command([parcel.push for parcel in parcels]))
            self._note(parcels, self._wire.reply())
        except ResponseError as error:
            self._refuse_all(parcels, error)
        except RedisError as error:
            self._give_up(parcels, error)

    def _refuse_all(self, parcels: list[Parcel], error: ResponseError) -> None:
        for parcel in parcels:
            if parcel.accepted:  # it was being pushed again, since Redis may have lost it
                self._owed.append(parcel)
            else:
                self._refuse(parcel, unavailable(error))

    def _note(self, parcels: list[Parcel], statuses: list[bytes]) -> None:
        for parcel, status in zip(parcels, statuses, strict=True):
            if status.startswith(b"full") and parcel.accepted:  # it was, and came again
                self._owed.append(parcel)
            elif status.startswith(b"full"):
                self._refuse(parcel, QueueFull.with_waiting(int(status.split()[1])))
            elif status == b"closed":
                self._refuse(parcel, VersionRetired.default())
            else:
                parcel.accepted = True

    def _give_up(self, parcels: list[Parcel], error: RedisError) -> None:
        refused = [parcel for parcel in parcels if not parcel.sent]
        # What was sent may be stored: it is pushed again until Redis says something of it.
        self._owed += [parcel for parcel in parcels if parcel.sent]
        if refused:
            log.warning("%d requests cannot be pushed, Redis fails: %s", len(refused), error)
        for parcel in refused:
            self._refuse(parcel, unavailable(error))
