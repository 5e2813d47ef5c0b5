"""How much may be under way at a time in a gRPC process: requests, and open streams.

Apart from `stream`, which is one of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import BoundedSemaphore, Lock
from typing import Protocol

from api.access.shares import KeyShares
from shared.access.api_key import ApiKey
from shared.access.keyring import Keyring
from shared.errors import QueueFull

LOOK_AGAIN_SECONDS = 0.2
"""A stream that waits for a place looks so often whether it still wants one."""
STREAMS_LEAVE = 4
"""One place in so many is for single calls alone."""
TOO_MANY = "{} infer calls are under way: {} may be, and of these each API key has its share"
MAX_STREAMS = 256
"""Each has two threads."""
PUSHED_OUT = f"{MAX_STREAMS} streams are open, which is the limit, and this one was idle longest"


class Places:
    """The places of requests under way: single calls are refused without one, streams wait.

    Of an API key that has its share single calls are refused as well. Its streams are not: a
    quarter of all places is never theirs.
    """

    def __init__(self, most: int, keyring: Keyring | None = None) -> None:
        """Have `most` of them."""
        self._of_keys = KeyShares(most, keyring)
        self._most = most
        self._all = BoundedSemaphore(most)
        self._for_streams = BoundedSemaphore(max(1, most - most // STREAMS_LEAVE))

    @contextmanager
    def single(self, key: ApiKey | None) -> Iterator[None]:
        """Have one for a single call; raises QueueFull."""
        if not self._of_keys.try_take(key):
            raise QueueFull(TOO_MANY.format(self._of_keys.taken, self._most))
        try:
            if not self._all.acquire(blocking=False):
                raise QueueFull(TOO_MANY.format(self._most, self._most))
            try:
                yield
            finally:
                self._all.release()
        finally:
            self._of_keys.give_back(key)

    def take(self, key: ApiKey | None, is_unwanted: Callable[[], bool]) -> bool:
        """Wait for one for a request of a stream; return whether there is one, and it is wanted."""
        if not _acquired(self._for_streams, is_unwanted):
            return False
        if not _acquired(self._all, is_unwanted):
            self._for_streams.release()
            return False
        self._of_keys.take(key)
        return True

    def give_back(self, key: ApiKey | None) -> None:
        """Give back what was taken for a request of a stream. For any thread; does not block."""
        self._of_keys.give_back(key)
        self._all.release()
        self._for_streams.release()


def _acquired(semaphore: BoundedSemaphore, is_unwanted: Callable[[], bool]) -> bool:
    while not semaphore.acquire(timeout=LOOK_AGAIN_SECONDS):
        if is_unwanted():
            return False
    return True


class OpenStream(Protocol):
    """What is asked of a stream here."""

    @property
    def is_idle(self) -> bool:
        """Tell whether no model works for it."""
        ...

    @property
    def connection(self) -> str:
        """Return the name of the connection that it came by."""
        ...

    @property
    def moved_at(self) -> float:
        """Return when it last read or was read from, in monotonic seconds."""
        ...

    def end(self, reason: str) -> None:
        """End it, UNAVAILABLE for `reason`."""
        ...

    def finish(self) -> None:
        """Read no more, and end once that is answered which was read."""
        ...


class OpenStreams:
    """The open streams of a process; when there are as many as may be, an idle one makes room."""

    def __init__(self) -> None:
        """Have none yet."""
        self._changing = Lock()
        self._open: set[OpenStream] = set()

    @contextmanager
    def place(self, stream: OpenStream) -> Iterator[None]:
        """Have a stream among them; raises QueueFull when all others are at work."""
        with self._changing:
            if len(self._open) >= MAX_STREAMS:
                self._make_room()
            self._open.add(stream)
        try:
            yield
        finally:
            with self._changing:
                self._open.discard(stream)

    def finish(self) -> None:
        """Have all of them finish."""
        with self._changing:
            streams = list(self._open)
        for stream in streams:
            stream.finish()

    def _make_room(self) -> None:
        """End the longest idle stream of the connection that has most idle ones.

        Else who has one would lose it to somebody who opens them by the thousand.
        """
        idle = [stream for stream in self._open if stream.is_idle]
        if not idle:
            raise QueueFull(f"{MAX_STREAMS} streams are at work, which is the limit")
        counts = Counter(stream.connection for stream in idle)
        oldest = min(idle, key=lambda stream: (-counts[stream.connection], stream.moved_at))
        self._open.discard(oldest)
        oldest.end(PUSHED_OUT)
