"""What one of many may have of a process's places while others may want some: its share.

Four times what is free, however many there are: one that asks too much leaves a fifth of all
places, two leave a ninth.
"""

from __future__ import annotations

from collections import Counter
from threading import Lock

from shared.access.api_key import ApiKey
from shared.access.keyring import Keyring

SHARE = 4


def has_its_share(mine: float, free: float) -> bool:
    """Tell whether who has `mine` of some places may have no more while so many are `free`."""
    return mine > SHARE * free


def is_lone(keyring: Keyring | None) -> bool:
    """Tell whether there is but one API key, and so nobody to share with."""
    return keyring is not None and keyring.is_of_one


class KeyPlaces:
    """How many of a process's places each API key has. For use by many threads."""

    def __init__(self, most: int, keyring: Keyring | None) -> None:
        """Have `most` of them, all free; a lone key of the `keyring` has them all."""
        self._most = most
        self._keyring = keyring
        self._changing = Lock()
        self._taken: Counter[str] = Counter()
        self.taken = 0

    def try_take(self, key: ApiKey | None) -> bool:
        """Count one more, unless none is free or the key has its share; return whether it is."""
        with self._changing:
            free = self._most - self.taken
            if free <= 0:
                return False
            if key and has_its_share(self._taken[key.id], free) and not is_lone(self._keyring):
                return False
            self._add(key)
            return True

    def take(self, key: ApiKey | None) -> None:
        """Count one more, of a key's or of nobody's."""
        with self._changing:
            self._add(key)

    def _add(self, key: ApiKey | None) -> None:
        self.taken += 1
        if key is not None:
            self._taken[key.id] += 1

    def give_back(self, key: ApiKey | None) -> None:
        """Count one less."""
        with self._changing:
            self.taken -= 1
            if key is not None:
                self._taken[key.id] -= 1
                if not self._taken[key.id]:
                    del self._taken[key.id]
