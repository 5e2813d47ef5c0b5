"""The honest client, in a process of its own (`python -m siege.honest PORT`).

Asks `tiny` every 20 ms from a line on its standard input until the next one, and answers that with
a JSON line of what became of it. Ends with its standard input.
"""

from __future__ import annotations

import json
import select
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import NamedTuple

from bench.processes import Child, running
from siege.bodies import tiny

PAUSE_SECONDS = 0.02
OK = 200
ANSWER_SECONDS = 90.0


class Seen(NamedTuple):
    """What the client saw: times are in milliseconds, failures the first few."""

    asked: int
    failed: int
    p50: float
    p99: float
    failures: list[str]


class HonestClient:
    """The child, seen from the programme."""

    def __init__(self, child: Child) -> None:
        """Ask through `child`, once it is there."""
        self._child = child
        child.answer(ANSWER_SECONDS)

    def begin(self) -> None:
        """Have it ask."""
        self._child.tell("begin")

    def end(self) -> Seen:
        """Have it stop; return what it saw."""
        self._child.tell("end")
        return Seen(**json.loads(self._child.answer(ANSWER_SECONDS)))


@contextmanager
def honest_client(port: int, log_file: Path) -> Iterator[HonestClient]:
    """Have one for as long as the block."""
    command = [sys.executable, "-m", "siege.honest", str(port)]
    with running(command, {}, log_file, piped=True) as process:
        yield HonestClient(Child(process, log_file))


def ask_until_told(port: int) -> Seen:
    """Ask until there is something on standard input."""
    body, took, failures = tiny(), list[float](), list[str]()
    connection = HTTPConnection("127.0.0.1", port, timeout=60.0)
    while not select.select([sys.stdin], [], [], PAUSE_SECONDS)[0]:
        began = time.monotonic()
        try:
            connection.request("POST", "/v2/models/tiny/infer", body)
            response = connection.getresponse()
            text = response.read()
            if response.status != OK:
                failures.append(f"{response.status} {text[:100].decode(errors='replace')}")
        except (OSError, HTTPException) as error:
            connection.close()
            failures.append(repr(error))
        took.append(1e3 * (time.monotonic() - began))
    connection.close()
    took.sort()
    half, most = (took[int(share * len(took))] if took else 0.0 for share in (0.5, 0.99))
    return Seen(len(took), len(failures), round(half, 1), round(most, 1), failures[:3])


def main() -> None:
    """Ask from one line to the next."""
    print("ready", flush=True)
    while sys.stdin.readline():
        seen = ask_until_told(int(sys.argv[1]))
        sys.stdin.readline()
        print(json.dumps(seen._asdict()), flush=True)


if __name__ == "__main__":
    main()
