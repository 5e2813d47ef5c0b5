"""Something between Ferry and its Redis that forgets connections on which nobody speaks."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Thread


class IdleProxy:
    """Passes bytes on over TCP, and drops what was idle for so long.

    `way` is how: "reset" has the kernel answer what comes then with RST, in a "hole" all that is
    sent vanishes, and nobody is told.
    """

    def __init__(self, server: int, way: str, idle_seconds: float = float("inf")) -> None:
        self._server, self._way, self._idle_seconds = server, way, idle_seconds
        self._loop = asyncio.new_event_loop()
        self.port, self.dropped = 0, 0
        self._spoken: dict[asyncio.StreamWriter, float] = {}
        self._holes = set[asyncio.StreamWriter]()

    @contextmanager
    def running(self) -> Iterator[IdleProxy]:
        """Pass bytes on until the block ends."""
        self._loop.run_until_complete(self._listen())
        thread = Thread(target=self._loop.run_forever, daemon=True)
        thread.start()
        yield self
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        thread.join()
        self._loop.close()

    def drop(self) -> None:
        """Drop every connection that there is, spoken on or not."""
        asyncio.run_coroutine_threadsafe(self._drop(float("inf")), self._loop).result(10)

    async def _end(self) -> None:
        self._listening.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _listen(self) -> None:
        self._listening = await asyncio.start_server(self._pass_on, "127.0.0.1", 0)
        self.port = self._listening.sockets[0].getsockname()[1]
        self._watching = self._loop.create_task(self._watch())

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(0.05)
            await self._drop(time.monotonic() - self._idle_seconds)

    async def _drop(self, before: float) -> None:
        for client in [each for each, at in self._spoken.items() if at < before]:
            del self._spoken[client]
            self.dropped += 1
            if self._way == "hole":
                self._holes.add(client)
            else:
                opened = client.get_extra_info("socket")
                opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.transport.abort()

    async def _pass_on(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        from_server, server = await asyncio.open_connection("127.0.0.1", self._server)
        self._spoken[client] = time.monotonic()
        ways = [self._pump(reader, server, client), self._pump(from_server, client, client)]
        try:
            with suppress(OSError):
                await asyncio.gather(*ways)
        finally:
            self._spoken.pop(client, None)
            for end in (server, client):
                end.close()

    async def _pump(
        self, reader: asyncio.StreamReader, to: asyncio.StreamWriter, client: asyncio.StreamWriter
    ) -> None:
        while data := await reader.read(2**16):
            if client not in self._holes:
                if client in self._spoken:
                    self._spoken[client] = time.monotonic()
                to.write(data)
                await to.drain()
        if client not in self._holes:
            to.close()
