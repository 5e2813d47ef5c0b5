"""An API process's folder in shared memory: the bodies of its requests, and their answers."""

from __future__ import annotations

import fcntl
import os
import time
import weakref
from collections.abc import Callable, Container, Sequence
from contextlib import suppress
from threading import Lock
from typing import NamedTuple

from shared.bodies.common_memory import CommonMemory
from shared.messages import LARGE_BYTES, BodyReference, InferRequest, Tensor, put_beside

SWEEP_SECONDS = 10.0
"""The interval at which answers are looked for that nobody waits for."""
MAX_FOLDER_TRIES = 5
STRAY_SECONDS = 5.0
"""A file that belongs to no request under way is a stray if it is so old."""


class Budget:
    """The bytes that one process may have in shared memory, of all its models; for any thread."""

    def __init__(self, max_bytes: int) -> None:
        """Begin with none taken."""
        self._free = max_bytes
        self._lock = Lock()

    def take(self, count: int) -> bool:
        """Take so many bytes, if they are free."""
        with self._lock:
            if count > self._free:
                return False
            self._free -= count
            return True

    def give_back(self, count: int) -> None:
        """Give back what was taken."""
        with self._lock:
            self._free += count


class SharedBodies(NamedTuple):
    """A process's use of shared memory: where, how much, and which one a model's instances see.

    `seen_by` returns the token of the memory that all of them see, by `ModelSpec.key`.
    """

    memory: CommonMemory
    budget: Budget
    seen_by: Callable[[str], str]

    @classmethod
    def of(cls, max_bytes: int, seen_by: Callable[[str], str]) -> SharedBodies | None:
        """Return this user's, None where it is not wanted or cannot be; reaps what others left."""
        memory = CommonMemory.of(max_bytes)
        if memory is None:
            return None
        memory.reap()
        return cls(memory, Budget(max_bytes), seen_by)


class PlacedBody:
    """A request's body: a message, and `size` bytes beside it until it is freed."""

    __slots__ = ("_free", "message", "size")

    def __init__(self, message: bytes, size: int, free: Callable[[], None]) -> None:
        """Hold what was placed."""
        self.message = message
        self.size = size
        self._free = [free]

    def free(self) -> None:
        """Remove what lies beside, the first time; for any thread."""
        with suppress(IndexError):
            self._free.pop()()


class BodyFolder:
    """The folder of one process, for one model version; for any thread."""

    def __init__(self, bodies: SharedBodies, process: str, model_key: str) -> None:
        """Have one that is called as the `process` is, from the first request on."""
        self._memory = bodies.memory
        self._budget = bodies.budget
        self._seen_by = bodies.seen_by
        self._model_key = model_key
        self._name = process
        self._next_sweep = 0.0
        self._opening = Lock()
        self._descriptor: int | None = None
        self._tries_left = MAX_FOLDER_TRIES

    def open(self) -> bool:
        """Make the folder, unless it cannot be made, as when the memory is full; tell if it is."""
        if self._descriptor is None and self._tries_left:
            with self._opening:
                while self._descriptor is None and self._tries_left:
                    self._tries_left -= 1
                    with suppress(OSError):  # who reaps had it, between its making and its lock
                        self._open()
        return self._descriptor is not None

    def _open(self) -> None:
        folder = _locked_folder(self._memory.descriptor, self._name)
        weakref.finalize(self, _remove, self._memory, self._name, folder, os.getpid())
        self._descriptor = folder

    def put(self, request: InferRequest) -> PlacedBody | None:
        """Place a request's large tensors; None where they are to go through Redis.

        As they are small, somebody would not see them, or there is no room.
        """
        if not self.open() or not is_large(request.inputs):
            return None
        if self._seen_by(self._model_key) != self._memory.token:
            return None
        beside = put_beside(request.inputs)
        if not self._budget.take(beside.size):
            return None
        reference = None
        try:
            reference = self._memory.write(request.id, beside.buffers, beside.size)
        finally:
            if reference is None:
                self._budget.give_back(beside.size)
        if reference is None:
            return None
        path = f"{self._name}/{reference.name(request.id)}"

        def free() -> None:
            self._memory.remove(path)
            self._budget.give_back(beside.size)

        message = reference.before(request._replace(inputs=beside.tensors).encode())
        return PlacedBody(message, beside.size, free)

    def take(self, request_id: str, answer: bytes) -> memoryview | None:
        """Return what lies beside an answer, which is its reader's alone from now on.

        None where it is not there. Must not block: it is called in the event loop.
        """
        found = self._memory.read(request_id, answer)
        if found is not None:
            name = BodyReference.of(answer).name(request_id)
            self._memory.remove(f"{self._name}/{name}")
        return found

    def sweep(self, waiting: Container[str]) -> None:
        """Remove now and then what belongs to no request that is `waiting`, by id.

        As an answer to one that was cancelled, or of an instance that died before it was told of.
        """
        if self._descriptor is None or time.monotonic() < self._next_sweep:
            return
        self._next_sweep = time.monotonic() + SWEEP_SECONDS
        strays_before = time.time() - STRAY_SECONDS
        with suppress(OSError):  # no descriptor is free: the next time
            _sweep(self._descriptor, waiting, strays_before)


def is_large(tensors: Sequence[Tensor]) -> bool:
    """Tell whether a request's tensors are to lie beside Redis, if they can."""
    return sum([len(tensor.data) for tensor in tensors]) >= LARGE_BYTES


def _sweep(folder: int, waiting: Container[str], strays_before: float) -> None:
    for name in os.listdir(folder):
        if name.partition(".")[0] not in waiting:
            with suppress(OSError):  # it is gone by now
                if os.stat(name, dir_fd=folder).st_mtime < strays_before:
                    os.unlink(name, dir_fd=folder)


def _remove(memory: CommonMemory, name: str, folder: int, owner: int) -> None:
    """Remove a folder that nobody uses any more; a process that was forked of its `owner` does not.

    Also at the owner's orderly end; at any other whoever reaps does.
    """
    if os.getpid() != owner:
        return
    with suppress(OSError):
        for each in os.listdir(folder):
            os.unlink(each, dir_fd=folder)
        os.rmdir(name, dir_fd=memory.descriptor)
    os.close(folder)


def _locked_folder(directory: int, name: str) -> int:
    """Make a folder and lock it; raises OSError, also where somebody else has it."""
    with suppress(FileExistsError):
        os.mkdir(name, 0o700, dir_fd=directory)
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    folder = os.open(name, flags, dir_fd=directory)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.stat(name, dir_fd=directory), os.fstat(folder)):
            raise FileNotFoundError(name)  # who reaps folders removed it
    except OSError:
        os.close(folder)
        raise
    return folder
