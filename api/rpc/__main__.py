"""Entry point of the gRPC side of the API: `python -m api.rpc`."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from api.rpc.server import Server
from shared.access.protected import check_protected
from shared.errors import BadSetting, RedisUnavailable
from shared.settings import start
from shared.wire.server_check import check_server


def main() -> int:
    """Answer calls until told to stop; 2 for a bad setting or server."""
    try:
        settings = start(os.environ)
        check_server(settings)
        with suppress(RedisUnavailable):  # waited for, and who needs a key waits as well
            check_protected(settings)
        server = Server(settings)
    except BadSetting as error:
        print(f"grpc: {error}", file=sys.stderr)
        return 2
    with _signals(signal.SIGTERM, signal.SIGINT) as received:
        server.start()
        received.recv(1)
        server.stop()
    return 0


@contextmanager
def _signals(*numbers: signal.Signals) -> Iterator[socket.socket]:
    """Yield a socket on which each of these signals is a byte.

    subtle: any thread may receive a signal, and Python's handlers run in the main thread only, once
    it runs: one that waits for a lock or a queue sleeps on. What is written to a socket wakes it.
    """
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    for number in numbers:
        signal.signal(number, lambda _number, _frame: None)
    before = signal.set_wakeup_fd(writer.fileno())
    with reader, writer:
        yield reader
        signal.set_wakeup_fd(before)


if __name__ == "__main__":
    sys.exit(main())
