"""What one of many may have of a process's places while others may want some: its share.

Four times what is free, however many there are: one that asks too much leaves a fifth of all
places, two leave a ninth.
"""

from __future__ import annotations

from collections import Counter
from threading import Lock

from shared.access.api_key import ApiKey
from shared.access.keyring import Keyring
from shared.errors import QueueFull
from shared.messages import LARGE_BYTES

SHARE = 4


def has_its_share(mine: float, free: float) -> bool:
    """Tell whether who has `mine` of some places may have no more while so many are `free`."""
    return mine > SHARE * free


def is_lone(keyring: Keyring | None) -> bool:
    """Tell whether there is but one API key, and so nobody to share with."""
    return keyring is not None and keyring.is_of_one


class KeyShares:
    """How much each API key has of a process's places, or bytes. For use by many threads."""

    def __init__(self, most: int, keyring: Keyring | None) -> None:
        """Have `most` of them, all free; a lone key of the `keyring` has them all."""
        self._most = most
        self._keyring = keyring
        self._changing = Lock()
        self._taken: Counter[str] = Counter()
        self.taken = 0

    def try_take(self, key: ApiKey | None, count: int = 1) -> bool:
        """Count some more, unless they are not free or the key has its share; return whether."""
        with self._changing:
            free = self._most - self.taken - count + 1
            if free <= 0:
                return False
            if key and has_its_share(self._taken[key.id], free) and not is_lone(self._keyring):
                return False
            self._add(key, count)
            return True

    def take(self, key: ApiKey | None, count: int = 1) -> None:
        """Count some more, of a key's or of nobody's."""
        with self._changing:
            self._add(key, count)

    def give_back(self, key: ApiKey | None, count: int = 1) -> None:
        """Count so many less."""
        with self._changing:
            self._add(key, -count)
            if key is not None and not self._taken[key.id]:
                del self._taken[key.id]

    def _add(self, key: ApiKey | None, count: int) -> None:
        self.taken += count
        if key is not None:
            self._taken[key.id] += count


class HeldBody:
    """The bytes of one request that its process holds; the first LARGE_BYTES count for nothing."""

    def __init__(self, bodies: KeyShares) -> None:
        """Hold none yet of the `bodies` of the process."""
        self._bodies = bodies
        self._seen = self._held = 0
        self._key: ApiKey | None = None

    def add(self, count: int, key: ApiKey | None) -> None:
        """Hold more, of a key's or of nobody's; raises QueueFull."""
        self._seen += count
        wanted = self._seen - LARGE_BYTES - self._held
        if wanted <= 0:
            return
        self._key = self._key or key
        if not self._bodies.try_take(self._key, wanted):
            raise QueueFull(
                "the bodies under way in this process are as large as they may be, or the key's are"
            )
        self._held += wanted

    def release(self) -> None:
        """Hold none any more."""
        if self._held:
            self._bodies.give_back(self._key, self._held)
            self._held = 0
