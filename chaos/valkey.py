"""A Valkey that can be killed and started again, on the same socket and directory."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ferry.up.embedded_valkey import EmbeddedValkey, socket_path, spawn, wait_until_answers
from ferry.up.sessions import send

OF_STORES = ("--appendonly", "no", "--save", "", "--maxmemory", "256mb")
"""A body store keeps nothing."""


class MortalValkey:
    """One server after the other; `url` stays the same."""

    def __init__(self, directory: Path, options: Sequence[str] = ()) -> None:
        """Start the first one, and wait until it answers."""
        self._directory = directory
        self._options = options
        self._socket = socket_path(directory)
        self.start()

    def start(self) -> None:
        """Start a server that reads the append-only file, if one is there."""
        self.server: EmbeddedValkey = spawn(self._directory, self._socket, options=self._options)
        wait_until_answers(self.server)

    def hang(self) -> None:
        """Have it stand still (SIGSTOP)."""
        send(self.server.process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        """Have it go on."""
        send(self.server.process.pid, signal.SIGCONT)

    def kill(self) -> None:
        """Kill the server with SIGKILL."""
        self.server.process.kill()
        self.server.process.wait()
        self._socket.unlink()

    def restart(self) -> None:
        """Stop the server with SIGTERM, as an operator does, and start the next one."""
        self.server.stop()
        self.start()

    def forget(self) -> None:
        """Delete the append-only file of a server that does not run: the next one starts empty."""
        for written in self._directory.glob("appendonly*"):  # one file, before Redis 7.0
            shutil.rmtree(written) if written.is_dir() else written.unlink()

    @property
    def url(self) -> str:
        """What goes into REDIS_URL."""
        return self.server.url

    def close(self) -> None:
        """Stop the server and remove what `socket_path` made elsewhere."""
        self.server.stop()
        if self._socket.parent != self._directory:
            self._socket.parent.rmdir()


@contextmanager
def mortal_valkey(directory: Path, options: Sequence[str] = ()) -> Iterator[MortalValkey]:
    """Run one for as long as the block, with `options` before Ferry's own."""
    valkey = MortalValkey(directory, options)
    try:
        yield valkey
    finally:
        valkey.close()
