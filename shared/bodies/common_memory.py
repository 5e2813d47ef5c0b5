"""One user's directory in a machine's shared memory, where both ends put large tensors.

    /dev/shm/ferry-<uid>/           0700, ours, no link
        token                       16 hex digits, drawn once: who reads the same sees all
        <process>/                  an API process's, for one model version, named as in its
                                    requests' ids; locked (flock) as long as it lives
            <id>.<nonce>            a request's tensors, or those of its answer

A file holds one request's and is removed, never used again: who has mapped it keeps what it was,
and the kernel frees it with the last of these, however they end.
"""

from __future__ import annotations

import fcntl
import logging
import mmap
import os
import re
import stat
import weakref
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from secrets import token_hex

from shared.bodies.turns import let_others
from shared.errors import BadMessage
from shared.messages import IN_MEMORY, BodyReference, Buffer

log = logging.getLogger(__name__)

SHARED_MEMORY_ROOT = Path("/dev/shm")
OURS_ALONE = 0o700
FREE_SHARE = 2
"""No file is written that would leave less than one part in so many of the memory free."""
WRITTEN_BYTES = 4 * 2**20
"""Written at once; other greenlets have their turn between two pieces."""
NONCE_BYTES = 4
_TOKEN, _ID, _FOLDER = (re.compile(f"[0-9a-f]{{{count}}}") for count in (16, 32, 8))
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class CommonMemory:
    """The directory, open; for any number of threads."""

    def __init__(self, directory: Path) -> None:
        """Make the directory if need be; raises OSError where it cannot be ours alone."""
        with suppress(FileExistsError):
            directory.mkdir(mode=OURS_ALONE)
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        self.descriptor = os.open(directory, flags)
        try:
            found = os.fstat(self.descriptor)
            if found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) != OURS_ALONE:
                raise PermissionError(f"{directory} is not this user's alone")
            self.token = self._token()
        except OSError:
            os.close(self.descriptor)
            raise
        weakref.finalize(self, os.close, self.descriptor)

    @classmethod
    def of(cls, max_bytes: int) -> CommonMemory | None:
        """Return this user's, None where it is not wanted or cannot be."""
        if not max_bytes:
            return None
        try:
            return cls(SHARED_MEMORY_ROOT / f"ferry-{os.getuid()}")
        except OSError as error:
            log.info("large bodies go through Redis, there is no shared memory: %s", error)
            return None

    def _token(self) -> str:
        """Return the token, drawn by whoever comes first; raises OSError."""
        draft = f"token-{token_hex(8)}"
        written = os.open(draft, _NEW, 0o600, dir_fd=self.descriptor)
        try:
            os.write(written, token_hex(8).encode())
            with suppress(FileExistsError):
                os.link(
                    draft, "token", src_dir_fd=self.descriptor, dst_dir_fd=self.descriptor,
                    follow_symlinks=False,
                )  # fmt: skip
        finally:
            os.close(written)
            os.unlink(draft, dir_fd=self.descriptor)
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        opened = os.open("token", flags, dir_fd=self.descriptor)
        try:
            token = os.read(opened, 64).decode(errors="replace")
        finally:
            os.close(opened)
        if not _TOKEN.fullmatch(token):
            raise FileNotFoundError("the token is no token")
        return token

    def write(self, request_id: str, buffers: Sequence[Buffer], size: int) -> BodyReference | None:
        """Write what belongs to a request into the folder of who waits for it; None if it cannot.

        As there is no such folder where it is, or too little room.
        """
        reference = BodyReference(os.urandom(NONCE_BYTES), size)
        try:
            path = _path(request_id, reference)
            place = os.fstatvfs(self.descriptor)
            if (
                place.f_bavail * place.f_frsize - size
                < place.f_blocks * place.f_frsize // FREE_SHARE
            ):
                return None
            written = os.open(path, _NEW, 0o600, dir_fd=self.descriptor)
        except (OSError, BadMessage):
            return None
        is_whole = False
        try:
            _write_all(written, buffers)
            is_whole = True
        except OSError as error:
            log.info("request %s: not in shared memory but through Redis: %s", request_id, error)
        finally:
            os.close(written)
            if not is_whole:
                self.remove(path)
        return reference if is_whole else None

    def read(self, request_id: str, message: bytes) -> memoryview | None:
        """Return what lies beside a request's message, or its answer's; None where it is not.

        It stays as it is for as long as it is looked at.
        """
        try:
            reference = BodyReference.of(message)
            if reference.place != IN_MEMORY:
                return None
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
            opened = os.open(_path(request_id, reference), flags, dir_fd=self.descriptor)
        except (OSError, BadMessage):
            return None
        try:
            if os.fstat(opened).st_size != reference.size:
                return None
            # fast: the pages of a picture are looked up at once, not one after the other.
            flags = mmap.MAP_SHARED | (mmap.MAP_POPULATE if reference.size <= WRITTEN_BYTES else 0)
            return memoryview(mmap.mmap(opened, reference.size, flags, mmap.PROT_READ))
        except (OSError, ValueError, OverflowError):
            return None
        finally:
            os.close(opened)

    def remove(self, path: str) -> None:
        """Remove a file, if it is there."""
        with suppress(OSError):
            os.unlink(path, dir_fd=self.descriptor)

    def reap(self) -> int:
        """Remove the folders of processes that are gone; return how many."""
        count, names = 0, list[str]()
        with suppress(OSError):  # no descriptor is free: the next time
            names = os.listdir(self.descriptor)
        for name in filter(_FOLDER.fullmatch, names):
            with suppress(OSError):
                count += self._reap(name)
        return count

    def _reap(self, name: str) -> bool:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        folder = os.open(name, flags, dir_fd=self.descriptor)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises, while somebody lives
            for each in os.listdir(folder):
                os.unlink(each, dir_fd=folder)
            os.rmdir(name, dir_fd=self.descriptor)
        finally:
            os.close(folder)
        return True


def _path(request_id: str, reference: BodyReference) -> str:
    if not _ID.fullmatch(request_id):
        raise BadMessage(f"{request_id!r} is no id of a request that is waited for")
    return f"{request_id[:8]}/{reference.name(request_id)}"


def _write_all(descriptor: int, buffers: Sequence[Buffer]) -> None:
    """Write all of some buffers; raises OSError, also where there is no room."""
    for buffer in buffers:
        left = memoryview(buffer)
        while left:
            left = left[os.write(descriptor, left[:WRITTEN_BYTES]) :]
            if left:
                let_others()
