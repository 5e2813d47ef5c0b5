"""A body store of a test's own: a Valkey that keeps nothing, to be killed and started again."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from redis import Redis

from ferry.up.embedded_valkey import socket_path, spawn, wait_until_answers

KEEPS_NOTHING = ("--appendonly", "no", "--save", "")


class StoreServer:
    """One server after the other, on one socket."""

    def __init__(self, directory: Path, options: tuple[str, ...] = ()) -> None:
        self._directory = directory
        self._options = (*KEEPS_NOTHING, *options)
        self.start()

    def start(self) -> None:
        self._server = spawn(self._directory, socket_path(self._directory), options=self._options)
        wait_until_answers(self._server)
        self.redis = Redis.from_url(self.url)

    @property
    def url(self) -> str:
        return self._server.url

    def kill(self) -> None:
        self._server.process.kill()
        self._server.process.wait()
        self._server.socket.unlink()

    def hang(self) -> None:
        os.kill(self._server.process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        os.kill(self._server.process.pid, signal.SIGCONT)

    def bodies(self, pattern: str = "*:beside:*") -> list[str]:
        """Return the keys of what lies in it."""
        return [key.decode() for key in self.redis.scan_iter(pattern, count=1000)]

    def close(self) -> None:
        self.redis.close()
        self._server.process.kill()
        self._server.process.wait()


@contextmanager
def store_servers(count: int) -> Iterator[list[StoreServer]]:
    """Run so many."""
    with ExitStack() as stack:
        found = []
        for _ in range(count):
            directory = stack.enter_context(TemporaryDirectory(prefix="ferry-store-"))
            found.append(StoreServer(Path(directory)))
            stack.callback(found[-1].close)
        yield found
