"""The body stores: large tensors lie there where memory is not shared.

What belongs to a request is in one of them. Nobody waits for a store that is away or full: then
large tensors go through Redis, and what lay in it is lost, which is a `BodyLost`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from zlib import crc32

from shared.bodies.common_memory import NONCE_BYTES
from shared.bodies.keys import BodyKeys
from shared.bodies.store import Store, token_of
from shared.errors import BadMessage
from shared.messages import BodyReference, Buffer, Buffers
from shared.redis_urls import store_urls
from shared.wire.packing import Command


class BodyStores:
    """All stores of one setting; for any number of threads."""

    def __init__(self, stores: Sequence[Store], prefix: str) -> None:
        """Use their keys under `prefix`."""
        self._stores = list(stores)
        self._by_id = {each.id: each for each in stores}
        self.keys = BodyKeys(prefix)
        self.token = token_of(stores)

    @classmethod
    def of(cls, urls: str, prefix: str) -> BodyStores | None:
        """Return those that FERRY_BODY_URLS names, None where it is empty."""
        named = store_urls(urls)
        return cls([Store(url) for url in named], prefix) if named else None

    def __iter__(self) -> Iterator[Store]:
        """Return each store."""
        return iter(self._stores)

    def store_for(self, request_id: str) -> Store | None:
        """Return where what belongs to a request is to be written, None where none takes it."""
        first = crc32(request_id.encode())
        for number in range(len(self._stores)):
            store = self._stores[(first + number) % len(self._stores)]
            if store.takes:
                return store
        return None

    def holding(self, reference: BodyReference) -> Store | None:
        """Return the store of a reference, None where it is none of ours."""
        return self._by_id.get(reference.place)

    def key(self, request_id: str, reference: BodyReference) -> str:
        """Return the key of what a reference stands for."""
        return self.keys.beside + reference.name(request_id)

    def write_command(
        self, store: Store, request_id: str, buffers: Sequence[Buffer], size: int, ttl_ms: int
    ) -> tuple[BodyReference, Command]:
        """Return a new reference, and the command that writes what it stands for."""
        reference = BodyReference(os.urandom(NONCE_BYTES), size, store.id)
        # fast: large buffers are sent from where they are.
        value = Buffers(buffers)
        return reference, ("SET", self.key(request_id, reference), value, "PX", ttl_ms)

    def read(
        self, wanted: Sequence[tuple[str, bytes]], *, remove: bool = False
    ) -> list[memoryview | None]:
        """Return what lies beside requests' messages, or answers', by id; None where it is not.

        All stores are asked at once. What is read can be removed with it.
        """
        places: dict[bytes, list[tuple[int, str, int]]] = {}
        for index, (request_id, message) in enumerate(wanted):
            try:
                reference = BodyReference.of(message)
            except BadMessage:
                continue
            key = self.key(request_id, reference)
            places.setdefault(reference.place, []).append((index, key, reference.size))
        asked = []
        for place, found in places.items():
            if (store := self._by_id.get(place)) is None:
                continue
            keys = [key for _, key, _ in found]
            commands: list[Command] = [("MGET", *keys)]
            if remove:
                commands.append(("UNLINK", *keys))
            size = sum([size for _, _, size in found])
            asked.append((store, store.begin(*commands, awaited_bytes=size), found))
        bodies: list[memoryview | None] = [None] * len(wanted)
        for store, begun, found in asked:
            replies = store.replies(begun)
            read = replies[0] if replies else None
            if not isinstance(read, list) or len(read) != len(found):
                continue
            for (index, _, size), body in zip(found, read, strict=True):
                if isinstance(body, bytes) and len(body) == size:
                    bodies[index] = memoryview(body)
        return bodies
