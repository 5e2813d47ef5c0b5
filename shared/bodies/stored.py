"""An API process's end of the body stores: the bodies of its requests, and their answers."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from shared.bodies.folder import BodyFolder, Budget, PlacedBody, SharedBodies, is_large
from shared.bodies.stores import BodyStores
from shared.errors import BadMessage
from shared.messages import BodyReference, InferRequest, put_beside
from shared.settings import Settings
from shared.wire.client import milliseconds
from shared.wire.packing import Command

READER_MS = 20_000
BEAT_SECONDS = 5.0
"""How long a process is known to read answers, and how often it says so."""
LOSS_PAUSE_SECONDS = 5.0
"""A version of which something was lost puts nothing into stores for so long."""
MAX_REMOVALS = 100_000
"""Of bodies that cannot be removed yet; what is beyond expires."""
REMOVED_AT_ONCE = 1000


class StoredBodies(NamedTuple):
    """A process's use of body stores: which, how much, and which ones a model's instances know.

    `seen_by` returns the token of the stores that all of them know, by `ModelSpec.key`.
    """

    stores: BodyStores
    budget: Budget
    seen_by: Callable[[str], str]


class BodyShelf:
    """What one process has in the stores, for one model version; for any thread."""

    def __init__(
        self, bodies: StoredBodies, process: str, model_key: str, grace_seconds: float
    ) -> None:
        """Have bodies expire so long after their requests' deadlines."""
        self._stores = bodies.stores
        self._budget = bodies.budget
        self._seen_by = bodies.seen_by
        self._model_key = model_key
        self._grace_seconds = grace_seconds
        self._reader: Command = (
            "SET", bodies.stores.keys.reader + process, 1, "PX", READER_MS,
        )  # fmt: skip
        self._next_beat = 0.0
        self._not_before = 0.0
        self._removals = {each.id: deque[str](maxlen=MAX_REMOVALS) for each in bodies.stores}

    def put(self, request: InferRequest) -> PlacedBody | None:
        """Place a request's large tensors; None where they are to go through Redis.

        As they are small, an instance would not find them, or no store takes them.
        """
        if not is_large(request.inputs):
            return None
        if time.monotonic() < self._not_before:
            return None
        store = self._stores.store_for(request.id)
        if store is None or self._seen_by(self._model_key) != self._stores.token:
            return None
        beside = put_beside(request.inputs)
        if not self._budget.take(beside.size):
            return None
        ttl_ms = milliseconds(request.timeout_seconds + self._grace_seconds)
        reference, command = self._stores.write_command(
            store, request.id, beside.buffers, beside.size, ttl_ms
        )
        free = partial(self._free, reference.place, self._stores.key(request.id, reference))
        placed = PlacedBody(
            reference.before(request._replace(inputs=beside.tensors).encode()),
            beside.size,
            partial(free, beside.size),
        )
        is_taken = False
        try:
            replies = store.ask(command)
            is_taken = bool(replies) and store.took(replies[0])
        finally:
            if not is_taken:
                placed.free()
        return placed if is_taken else None

    def _free(self, place: bytes, key: str, size: int) -> None:
        self._removals[place].append(key)
        self._budget.give_back(size)

    def take(self, answers: Sequence[tuple[str, bytes]]) -> list[memoryview | None]:
        """Return what lies beside answers, by request ids, and remove it; None where it is not."""
        return self._stores.read(answers, remove=True)

    def forget(self, request_id: str, answer: bytes) -> None:
        """Remove soon what lies beside an answer for which nobody waits."""
        try:
            reference = BodyReference.of(answer)
        except BadMessage:
            return
        if (removals := self._removals.get(reference.place)) is not None:
            removals.append(self._stores.key(request_id, reference))

    def pause(self) -> None:
        """Put nothing into stores for a while, since something was lost there."""
        self._not_before = time.monotonic() + LOSS_PAUSE_SECONDS

    def tidy(self) -> None:
        """Remove what is not needed any more, and say now and then that answers are read here."""
        is_due = time.monotonic() >= self._next_beat
        if is_due:
            self._next_beat = time.monotonic() + BEAT_SECONDS
        asked = []
        for store in self._stores:
            removals = self._removals[store.id]
            if store.is_away or not (is_due or removals):
                continue
            keys = _taken(removals)
            commands: list[Command] = [("UNLINK", *keys)] if keys else []
            asked.append((store, store.begin(*commands, self._reader), removals, keys))
        for store, begun, removals, keys in asked:
            if not store.replies(begun):
                removals.extend(keys)


def beside_redis(
    settings: Settings, memory_of: Callable[[str], str], stores_of: Callable[[str], str]
) -> tuple[SharedBodies | None, StoredBodies | None]:
    """Return a process's use of shared memory, and of stores, each None where there is none.

    `memory_of` and `stores_of` are the `seen_by` of each.
    """
    shared = SharedBodies.of(settings.shared_body_bytes, memory_of)
    stores = BodyStores.of(settings.body_urls, settings.key_prefix)
    if stores is None:
        return shared, None
    return shared, StoredBodies(stores, Budget(settings.max_bodies_bytes), stores_of)


class OwnBodies(NamedTuple):
    """What one process has beside Redis for one model version: in shared memory, in stores."""

    folder: BodyFolder | None = None
    shelf: BodyShelf | None = None


def _taken(removals: deque[str]) -> list[str]:
    """Take the oldest keys out; any thread adds to them, one takes."""
    return [removals.popleft() for _ in range(min(len(removals), REMOVED_AT_ONCE))]
