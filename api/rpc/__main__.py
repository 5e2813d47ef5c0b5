"""Entry point of the gRPC side of the API: `python -m api.rpc`."""

from __future__ import annotations

import os
import signal
import sys
from queue import SimpleQueue

from api.rpc.server import Server
from api.start import start
from shared.errors import BadSetting


def main() -> int:
    """Answer calls until told to stop; 2 for a bad setting."""
    try:
        server = Server(start(os.environ))
    except BadSetting as error:
        print(f"grpc: {error}", file=sys.stderr)
        return 2
    stops: SimpleQueue[int] = SimpleQueue()  # may be put to in a signal handler, an Event may not
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _frame: stops.put(received))
    server.start()
    stops.get()
    server.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
