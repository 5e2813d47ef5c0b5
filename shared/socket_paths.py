"""Finds a directory with a path short enough for unix sockets, and misses semaphores in time."""

from __future__ import annotations

import multiprocessing
import os
import tempfile

from shared.errors import BadSetting

# sockaddr_un holds 108 bytes on Linux and 104 on macOS, the closing zero included.
MAX_SOCKET_PATH_BYTES = 103
NAME_BYTES = 40
"""The most of it that is ours, or multiprocessing's: a private directory and the socket's name."""
ELSEWHERE = ("/tmp", "/dev/shm", "/run", "/var/tmp")


def socket_base() -> str:
    """Return a directory that can be written and is short: that of TMPDIR, else one of the usual.

    Raises BadSetting when there is none.
    """
    try:
        usual = tempfile.gettempdir()
    except FileNotFoundError:  # neither TMPDIR nor what Python looks for besides can be written
        usual = ""
    for base in (usual, *ELSEWHERE):
        fits = len(os.fsencode(base)) + NAME_BYTES <= MAX_SOCKET_PATH_BYTES
        if fits and os.path.isdir(base) and os.access(base, os.W_OK | os.X_OK):
            return base
    raise BadSetting(
        f"TMPDIR={os.environ.get('TMPDIR', '')!r}: neither it nor {', '.join(ELSEWHERE)} can be "
        f"written and has a path short enough for a socket's "
        f"({MAX_SOCKET_PATH_BYTES - NAME_BYTES} bytes)"
    )


def no_semaphores() -> str:
    """Return why this machine gives processes no semaphores to share, empty when it does."""
    try:
        multiprocessing.Lock()
    except OSError as error:
        return (
            f"/dev/shm: {error.strerror}; mount a file system there that can be written, "
            "as `docker run --tmpfs /dev/shm` does"
        )
    return ""
