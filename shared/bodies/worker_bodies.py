"""A worker's end of what lies beside Redis: it reads requests there, and puts answers there."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from redis.exceptions import ResponseError

from shared.bodies.common_memory import CommonMemory
from shared.bodies.store import Begun, Store
from shared.bodies.stores import BodyStores
from shared.messages import (
    LARGE_BYTES,
    BodyReference,
    InferResult,
    LaidBeside,
    lies_in_memory,
    put_beside,
)  # fmt: skip

ANSWER_MS = 30_000
"""The life of an answer in a store that nobody reads."""
UNREAD_SECONDS = 5.0
"""Who read no answers in a store is not looked for again for so long."""
MAX_UNREAD = 4096
_PROCESS_DIGITS = 8


class _Sent(NamedTuple):
    """An answer that was sent to a store which has not said yet that it took it."""

    request_id: str
    result: InferResult
    key: str


@dataclass
class _Sending:
    """Answers of one batch that were sent to one store."""

    begun: Begun
    answers: list[_Sent] = field(default_factory=list)


class WorkerBodies:
    """The memory and the stores that a worker sees; for any number of threads."""

    def __init__(self, memory: CommonMemory | None, stores: BodyStores | None = None) -> None:
        """Use both, or one."""
        self.memory = memory
        self.stores = stores
        self._unread: dict[str, float] = {}

    @classmethod
    def of(cls, shared_body_bytes: int, body_urls: str, prefix: str) -> WorkerBodies | None:
        """Return what the settings name and this machine has, None where that is nothing."""
        memory = CommonMemory.of(shared_body_bytes)
        stores = BodyStores.of(body_urls, prefix)
        return None if memory is None and stores is None else cls(memory, stores)

    @property
    def memory_token(self) -> str:
        """The token of the memory, empty without."""
        return self.memory.token if self.memory is not None else ""

    @property
    def store_token(self) -> str:
        """The token of the stores, empty without."""
        return self.stores.token if self.stores is not None else ""

    def read(self, messages: Sequence[tuple[str, bytes]]) -> list[memoryview | None]:
        """Return what lies beside messages, by request ids; None where it is not.

        All stores are read at once.
        """
        found: list[memoryview | None] = [None] * len(messages)
        stored = []
        for index, (request_id, message) in enumerate(messages):
            if not lies_in_memory(message):
                stored.append(index)
            elif self.memory is not None:
                found[index] = self.memory.read(request_id, message)
        if stored and self.stores is not None:
            read = self.stores.read([messages[index] for index in stored])
            for index, body in zip(stored, read, strict=True):
                found[index] = body
        return found

    def answers(self) -> AnswersBeside:
        """Return what puts the answers of one batch there."""
        return AnswersBeside(self.memory, self.stores, self._unread)

    def reap(self) -> None:
        """Remove what API processes of this machine that are gone left in memory."""
        if self.memory is not None:
            self.memory.reap()


class AnswersBeside:
    """Encodes the answers of one batch, the large ones with their tensors beside Redis."""

    def __init__(
        self, memory: CommonMemory | None, stores: BodyStores | None, unread: dict[str, float]
    ) -> None:
        """Hold none yet; the processes of `unread` read none in stores before a monotonic time."""
        self._memory = memory
        self._stores = stores
        self._unread = unread
        self._sending: dict[Store, _Sending] = {}

    def encoded(self, request_id: str, result: InferResult) -> bytes:
        """Encode an answer; `settle` tells whether it stays so."""
        if sum([len(each.data) for each in result.outputs]) < LARGE_BYTES:
            return result.encode()
        beside = put_beside(result.outputs)
        reference = None
        if self._memory is not None:
            reference = self._memory.write(request_id, beside.buffers, beside.size)
        if reference is None and self._stores is not None:
            reference = self._sent(self._stores, request_id, beside, result)
        if reference is None:
            return result.encode()
        return reference.before(result._replace(outputs=beside.tensors).encode())

    def settle(self, results: dict[str, bytes]) -> None:
        """Wait until the stores have taken the answers; encode those whole that they have not."""
        for store, sending in self._sending.items():
            replies = store.replies(sending.begun)
            if not replies:
                store.doubt([each.key for each in sending.answers])
            unread = []
            for index, answer in enumerate(sending.answers):
                is_read, taken = replies[2 * index : 2 * index + 2] or (None, None)
                if is_read == 1 and store.took(taken):
                    continue
                results[answer.request_id] = answer.result.encode()
                if isinstance(taken, ResponseError):
                    store.refuse(taken)
                elif is_read == 0:
                    unread.append(answer.key)
                    self._note_unread(answer.request_id)
            if unread:
                store.ask(("UNLINK", *unread))
        self._sending.clear()

    def _sent(
        self, stores: BodyStores, request_id: str, beside: LaidBeside, result: InferResult
    ) -> BodyReference | None:
        """Send an answer's tensors to a store; None where who waits for it reads none."""
        process = request_id[:_PROCESS_DIGITS]
        if self._unread.get(process, 0.0) > time.monotonic():
            return None
        store = stores.store_for(request_id)
        if store is None:
            return None
        reference, command = stores.write_command(
            store, request_id, beside.buffers, beside.size, ANSWER_MS
        )
        commands = ("EXISTS", stores.keys.reader + process), command
        if (sending := self._sending.get(store)) is not None:
            store.go_on(sending.begun, *commands)
        elif (begun := store.begin(*commands)) is not None:
            sending = self._sending[store] = _Sending(begun)
        else:
            return None
        sending.answers.append(_Sent(request_id, result, stores.key(request_id, reference)))
        return reference

    def _note_unread(self, request_id: str) -> None:
        if len(self._unread) >= MAX_UNREAD:
            self._unread.clear()
        self._unread[request_id[:_PROCESS_DIGITS]] = time.monotonic() + UNREAD_SECONDS
