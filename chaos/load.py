"""The load: many steady clients in a process of their own, which dies with nothing that is killed.

A child of the programme (`python -m chaos.load PORT MODEL QUESTIONS CLIENTS`): prints `ready`, asks
until its standard input says `stop`, and prints its tally as one JSON line.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

from bench.processes import Child, running
from chaos import questions
from chaos.client import ANSWER_TIMEOUT_SECONDS, GIVE_UP_SECONDS, Answer, Client, Tally, Trouble

START_TIMEOUT_SECONDS = 30.0
STOP_TIMEOUT_SECONDS = GIVE_UP_SECONDS + ANSWER_TIMEOUT_SECONDS


class Load:
    """The child, seen from the programme."""

    def __init__(self, child: Child) -> None:
        """Wait until its clients begin."""
        self._child = child
        child.answer(START_TIMEOUT_SECONDS)

    def stop(self) -> Tally:
        """Have every client finish the request in its hands; return what became of all requests."""
        self._child.tell("stop")
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


def main() -> None:
    """Ask until told to stop."""
    port, model, file, count = sys.argv[1:]
    stopped, asked = Event(), questions.read(Path(file))
    clients = [
        Client(number, int(port), model, asked, stopped.is_set) for number in range(int(count))
    ]
    threads = [Thread(target=client.run, daemon=True) for client in clients]
    for thread in threads:
        thread.start()
    print("ready", flush=True)
    sys.stdin.readline()
    stopped.set()
    total = Tally()
    for thread, client in zip(threads, clients, strict=True):
        thread.join()
        total.add(client.tally)
    print(json.dumps(vars(total)), flush=True)


if __name__ == "__main__":
    main()
