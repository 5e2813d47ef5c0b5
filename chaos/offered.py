"""Load at a given rate, answered or not, in a process of its own: what overload is made of.

A child of the programme (`python -m chaos.offered PORT PATH BODY`): answers each line
`PER_SECOND SECONDS` with a JSON line of what came of it, and ends with its standard input.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any, NamedTuple

from bench.processes import Child, running
from chaos.client import ANSWER_TIMEOUT_SECONDS, OK, UNAVAILABLE

SENDERS = 128
ANSWER_GRACE_SECONDS = 60.0


class Offered(NamedTuple):
    """What came of the requests of one stretch of time; the 99th percentiles are in seconds.

    `failed` names the first that were neither answered nor refused with a time to come back.
    """

    sent: int
    answered: int
    refused: int
    refused_p99: float
    answered_p99: float
    failed: list[str]


class Offer:
    """The child, seen from the programme."""

    def __init__(self, child: Child) -> None:
        """Ask through `child`."""
        self._child = child

    def ask(self, per_second: float, seconds: float) -> Offered:
        """Send for so long at this rate; return once all have an answer."""
        self._child.tell(f"{per_second} {seconds}")
        return Offered(**json.loads(self._child.answer(seconds + ANSWER_GRACE_SECONDS)))


@contextmanager
def running_offer(port: int, path: str, body: str, log_file: Path) -> Iterator[Offer]:
    """Be able to ask `path` for as long as the block."""
    command = [sys.executable, "-m", "chaos.offered", str(port), path, body]
    with running(command, {}, log_file, piped=True) as process:
        yield Offer(Child(process, log_file))


def send(port: int, path: str, body: bytes, per_second: float, seconds: float) -> Offered:
    """Send at this rate from many connections that are kept alive."""
    numbers, count = itertools.count(), int(per_second * seconds)
    start, outcomes = time.monotonic(), list[tuple[str, float]]()

    def sender() -> None:
        connection = HTTPConnection("127.0.0.1", port, timeout=ANSWER_TIMEOUT_SECONDS)
        while (number := next(numbers)) < count:
            time.sleep(max(0.0, start + number / per_second - time.monotonic()))
            outcomes.append(_exchange(connection, path, body))
        connection.close()

    with ThreadPoolExecutor(SENDERS) as pool:
        for each in [pool.submit(sender) for _ in range(SENDERS)]:
            each.result()
    answered = [took for what, took in outcomes if what == "answered"]
    refused = [took for what, took in outcomes if what == "refused"]
    failed = [what for what, _ in outcomes if what not in {"answered", "refused"}]
    return Offered(
        len(outcomes), len(answered), len(refused), _p99(refused), _p99(answered), failed[:5]
    )


def _exchange(connection: HTTPConnection, path: str, body: bytes) -> tuple[str, float]:
    began = time.monotonic()
    try:
        connection.request("POST", path, body)
        response = connection.getresponse()
        text = response.read()
    except (OSError, HTTPException) as error:
        connection.close()
        return repr(error), time.monotonic() - began
    took = time.monotonic() - began
    if response.status == OK:
        return "answered", took
    if response.status == UNAVAILABLE and response.getheader("Retry-After"):
        return "refused", took
    return f"{response.status} {text.decode(errors='replace')[:200]}", took


def _p99(seconds: list[float]) -> float:
    return sorted(seconds)[int(0.99 * len(seconds))] if seconds else 0.0


def main() -> None:
    """Send as told until standard input ends."""
    port, path, body = sys.argv[1:]
    for line in sys.stdin:
        per_second, seconds = map(float, line.split())
        result: dict[str, Any] = send(int(port), path, body.encode(), per_second, seconds)._asdict()
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
