"""A Valkey of a test's own, to be killed and started again."""

from __future__ import annotations

from pathlib import Path

from ferry.up.embedded_valkey import EmbeddedValkey, socket_path, spawn, wait_until_answers


class OwnValkey:
    """A Valkey on a socket of its own that can be killed and started again."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.server = self._started()

    def _started(self) -> EmbeddedValkey:
        server = spawn(self._directory, socket_path(self._directory))
        wait_until_answers(server)
        return server

    def kill(self) -> None:
        self.server.process.kill()
        self.server.process.wait()
        self.server.socket.unlink()

    def start_again(self) -> None:
        self.server = self._started()
