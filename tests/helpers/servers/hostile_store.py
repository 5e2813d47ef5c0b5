"""A body store that answers, but not as one should."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Thread

import hiredis

GARBAGE = b"HTTP/1.1 400 Bad Request\r\n\r\n"


class HostileStore:
    """A server whose reply to each command `reply` makes, OK at first; for clients in threads.

    It reads `bytes_per_second` at most where it is set.
    """

    def __init__(self) -> None:
        self.reply: Callable[[list[bytes]], bytes] = lambda _: b"+OK\r\n"
        self.drips = b""
        """What it sends from now on, a byte each tenth of a second, instead of replies."""
        self.bytes_per_second = 0.0
        self.asked: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}"
        Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        reader = hiredis.Reader()
        with suppress(OSError), client:
            while data := client.recv(1 << 16):
                if self.bytes_per_second:
                    time.sleep(len(data) / self.bytes_per_second)
                reader.feed(data)
                while (command := reader.gets()) is not False:
                    self._answer(client, command)

    def _answer(self, client: socket.socket, command: list[bytes]) -> None:
        name = command[0].upper()
        if name in (b"CLIENT", b"SELECT"):
            client.sendall(b"+OK\r\n")
            return
        self.asked.append(name)
        for byte in self.drips:
            client.sendall(bytes([byte]))
            time.sleep(0.1)
        client.sendall(b"+PONG\r\n" if name == b"PING" else self.reply(command))


@contextmanager
def hostile_store() -> Iterator[HostileStore]:
    """Run one."""
    server = HostileStore()
    try:
        yield server
    finally:
        server.close()
