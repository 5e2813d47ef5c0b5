"""A process's copy of the API keys, half a second old at most while it is asked."""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from threading import Lock, Thread

from shared.access.api_key import SECRET, ApiKey
from shared.access.key_store import FileOfKeys, Keys, Store
from shared.errors import BadSetting, FerryError, Unauthorized

log = logging.getLogger(__name__)

KEYS_SECONDS = 0.5
AGAIN_SECONDS = 0.5
WANTED = "this server wants an API key: Authorization: Bearer <key>, or X-API-Key"


class Keyring:
    """Finds the key that a request came with. For use by many threads."""

    def __init__(self, store: Store, *, required: bool) -> None:
        """Read nothing yet; `required` says that nobody may ask without a key, even if none is."""
        self._store = store
        self._required = required or isinstance(store, FileOfKeys)
        self._reading = Lock()
        self._read_at = float("-inf")
        # Both at once, or a key that was just revoked could get into the new table.
        self._keys_and_known: tuple[Keys, dict[str, ApiKey]] | None = None
        self._is_on = True
        self._is_of_one = False
        self._is_lost = False

    def find(self, secret: str | None) -> ApiKey | None:
        """Return the key of this secret, None where there are no keys and everybody may do all.

        Raises Unauthorized, and RedisUnavailable when the keys were never read.
        """
        # fast: nearly always two comparisons and a look into a table.
        if time.monotonic() - self._read_at > KEYS_SECONDS:
            self._refresh()
        if not self._is_on:
            return None
        if secret is None:
            raise Unauthorized(WANTED)
        assert self._keys_and_known is not None, "it was read"
        keys, known = self._keys_and_known
        key = known.get(secret)
        if key is None:
            key = known[secret] = _matching(keys, secret)
        if key.expires and time.time() >= key.expires:
            raise Unauthorized("this API key has expired")
        return key

    def all(self) -> Keys:
        """Return all keys by id, revoked ones too."""
        if time.monotonic() - self._read_at > KEYS_SECONDS:
            self._refresh()
        return self._keys_and_known[0] if self._keys_and_known else {}

    @property
    def is_of_one(self) -> bool:
        """Tell whether all but one of the keys were revoked, if there were others."""
        return self._is_of_one

    def _refresh(self) -> None:
        """Read the keys anew; where that fails, go on by those of before and have a thread try."""
        with self._reading:
            is_fresh = time.monotonic() - self._read_at <= KEYS_SECONDS  # somebody else's doing
            if is_fresh or self._is_lost:
                return
            try:
                self._take(self._store.read())
            except (BadSetting, FerryError) as error:
                if self._keys_and_known is None:
                    raise
                log.error("the keys as last read go on counting: %s", error.__cause__ or error)
                self._is_lost = True
                Thread(target=self._seek, name="ferry-keys", daemon=True).start()

    def _seek(self) -> None:
        """Read the keys as soon as they can be read: a Redis that hangs holds up no request."""
        while self._is_lost:
            time.sleep(AGAIN_SECONDS)
            with suppress(BadSetting, FerryError):
                keys = self._store.read()
                with self._reading:
                    self._take(keys)
                    self._is_lost = False

    def _take(self, keys: Keys) -> None:
        if self._keys_and_known is None or keys is not self._keys_and_known[0]:
            self._keys_and_known = (keys, {})
            # A Redis that lost its keys opens nothing, as long as this process knows of them.
            self._required = self._required or bool(keys)
            self._is_on = self._required
            self._is_of_one = sum(not key.revoked for key in keys.values()) == 1
        self._read_at = time.monotonic()


def _matching(keys: Keys, secret: str) -> ApiKey:
    """Return the key of a secret that did not come before; raises Unauthorized.

    A key is looked for by its id, and what is secret of it is compared in constant time.
    """
    found = SECRET.fullmatch(secret)
    key = keys.get(found[1]) if found else None
    if key is None or not key.matches(secret):
        raise Unauthorized("this API key is not known")
    if not key.is_good():
        raise Unauthorized(f"this API key {'was revoked' if key.revoked else 'has expired'}")
    return key
