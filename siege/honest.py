"""The honest client, in a process of its own (`python -m siege.honest PORT GRPC_PORT`).

Asks `tiny` every 20 ms, from a line on its standard input that says by what until the next one, and
answers that with a JSON line of what became of it. Ends with its standard input.
"""

from __future__ import annotations

import json
import select
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import NamedTuple

import grpc

from bench.processes import Child, running
from siege import rpc
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

    def begin(self, *, over_grpc: bool = False) -> None:
        """Have it ask."""
        self._child.tell("grpc" if over_grpc else "http")

    def end(self) -> Seen:
        """Have it stop; return what it saw."""
        self._child.tell("end")
        return Seen(**json.loads(self._child.answer(ANSWER_SECONDS)))


@contextmanager
def honest_client(port: int, grpc_port: int, log_file: Path) -> Iterator[HonestClient]:
    """Have one for as long as the block."""
    command = [sys.executable, "-m", "siege.honest", str(port), str(grpc_port)]
    with running(command, {}, log_file, piped=True) as process:
        yield HonestClient(Child(process, log_file))


def ask_until_told(ask: Callable[[], str]) -> Seen:
    """Ask until there is something on standard input; `ask` returns what failed, if it did."""
    took, failures = list[float](), list[str]()
    while not select.select([sys.stdin], [], [], PAUSE_SECONDS)[0]:
        began = time.monotonic()
        if failure := ask():
            failures.append(failure)
        took.append(1e3 * (time.monotonic() - began))
    took.sort()
    half, most = (took[int(share * len(took))] if took else 0.0 for share in (0.5, 0.99))
    return Seen(len(took), len(failures), round(half, 1), round(most, 1), failures[:3])


def over_http(port: int) -> Iterator[str]:
    """Ask once at each step."""
    body, connection = tiny(), HTTPConnection("127.0.0.1", port, timeout=60.0)
    while True:
        try:
            connection.request("POST", "/v2/models/tiny/infer", body)
            response = connection.getresponse()
            text = response.read()
            is_good = response.status == OK
            yield "" if is_good else f"{response.status} {text[:100].decode(errors='replace')}"
        except (OSError, HTTPException) as error:
            connection.close()
            yield repr(error)


def over_grpc(port: int) -> Iterator[str]:
    """Ask once at each step."""
    with rpc.channel(port) as channel:
        ask, body = channel.unary_unary(rpc.INFER), rpc.sound().SerializeToString()
        while True:
            try:
                ask(body, timeout=60.0)
                yield ""
            except grpc.RpcError as error:
                yield f"{error.code().name} {error.details()}"


def main() -> None:
    """Ask from one line to the next."""
    print("ready", flush=True)
    clients = {"http": over_http(int(sys.argv[1])), "grpc": over_grpc(int(sys.argv[2]))}
    while by := sys.stdin.readline().strip():
        seen = ask_until_told(partial(next, clients[by]))
        sys.stdin.readline()
        print(json.dumps(seen._asdict()), flush=True)


if __name__ == "__main__":
    main()
