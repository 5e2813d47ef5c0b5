"""The load: many steady clients in a process of their own, which dies with nothing that is killed.

A child of the programme (`python -m chaos.load PORT MODEL QUESTIONS CLIENTS`): prints `ready`, asks
until its standard input says `stop`, and prints its tally as one JSON line. `rest` has every client
finish its request and wait for `go on`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Condition, Thread
from typing import Any

from bench.processes import Child, running
from chaos import questions
from chaos.client import ANSWER_TIMEOUT_SECONDS, GIVE_UP_SECONDS, Answer, Client, Tally, Trouble

START_TIMEOUT_SECONDS = 30.0
STOP_TIMEOUT_SECONDS = GIVE_UP_SECONDS + ANSWER_TIMEOUT_SECONDS
REST, GO_ON, STOP = "rest", "go on", "stop"


class Load:
    """The child, seen from the programme."""

    def __init__(self, child: Child) -> None:
        """Wait until its clients begin."""
        self._child = child
        child.answer(START_TIMEOUT_SECONDS)

    @contextmanager
    def resting(self) -> Iterator[None]:
        """Have every client finish the request in its hands, and ask none during the block."""
        self._child.tell(REST)
        self._child.answer(STOP_TIMEOUT_SECONDS)
        yield
        self._child.tell(GO_ON)

    def stop(self) -> Tally:
        """Have every client finish the request in its hands; return what became of all requests."""
        self._child.tell(STOP)
        counted: dict[str, Any] = json.loads(self._child.answer(STOP_TIMEOUT_SECONDS))
        failures, wrong, refusals = (
            [Trouble(*trouble) for trouble in counted[name]]
            for name in ("failures", "wrong", "refusals")
        )
        answers = [Answer(*answer) for answer in counted["answers"]]
        reconnected: int = counted["reconnected"]
        return Tally(counted["sent"], answers, failures, wrong, refusals, reconnected)


@contextmanager
def running_load(
    port: int, model: str, questions_file: Path, log_file: Path, clients: int
) -> Iterator[Load]:
    """Ask `model` on `port` for as long as the block, or until the load is stopped."""
    command = [sys.executable, "-m", "chaos.load", str(port), model, str(questions_file)]
    environ = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}  # sums this small need no second thread
    with running([*command, str(clients)], environ, log_file, piped=True) as process:
        yield Load(Child(process, log_file))


class Gate:
    """Where clients come before each request; closed, it holds them there."""

    def __init__(self, count: int) -> None:
        """Be open to `count` clients."""
        self._count = count
        self._waiting = 0
        self._is_open, self._has_ended = True, False
        self._changed = Condition()

    def pass_through(self) -> bool:
        """Return once the gate is open; False when no more is to be asked."""
        with self._changed:
            self._waiting += 1
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._is_open or self._has_ended)
            self._waiting -= 1
            return not self._has_ended

    def close(self) -> None:
        """Return once every client waits."""
        with self._changed:
            self._is_open = False
            self._changed.wait_for(lambda: self._waiting == self._count)

    def open(self) -> None:
        """Let all through at once."""
        with self._changed:
            self._is_open = True
            self._changed.notify_all()

    def end(self) -> None:
        """Send clients home, those that come and those that wait."""
        with self._changed:
            self._has_ended = True
            self._changed.notify_all()


def main() -> None:
    """Ask until told to stop."""
    port, model, file, count = sys.argv[1:]
    gate, asked = Gate(int(count)), questions.read(Path(file))
    clients = [
        Client(number, int(port), model, asked, gate.pass_through) for number in range(int(count))
    ]
    threads = [Thread(target=client.run, daemon=True) for client in clients]
    for thread in threads:
        thread.start()
    print("ready", flush=True)
    _follow_orders(gate)
    total = Tally()
    for thread, client in zip(threads, clients, strict=True):
        thread.join()
        total.add(client.tally)
    print(json.dumps(vars(total)), flush=True)


def _follow_orders(gate: Gate) -> None:
    """Have the clients rest and go on; return once they are sent home."""
    while (order := sys.stdin.readline().strip()) in (REST, GO_ON):
        if order == REST:
            gate.close()
            print("resting", flush=True)
        else:
            gate.open()
    gate.end()


if __name__ == "__main__":
    main()
