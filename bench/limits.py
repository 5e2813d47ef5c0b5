"""Runs the bare limits of a model: starts bench/children/bare.py and asks it in turn."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench.measurements import Measurement
from bench.processes import Child, running
from shared.cores import default_cores

START_TIMEOUT_SECONDS = 120.0
# One batch of the slowest model on a busy machine.
GRACE_SECONDS = 30.0


@contextmanager
def bare_limits(
    model: str, repository: str, directory: Path, *, pictures: bool
) -> Iterator[dict[str, Callable[[float], Measurement]]]:
    """Yield how to measure each limit, by its name in the table: seconds in, rows/s out.

    Pictures are decoded and run in two ways on the same cores, one process with all the threads
    and one single-threaded process per core; the better of them is the limit.
    """
    cores = default_cores()
    command = [sys.executable, "-m", "bench.children.bare", model, repository]
    with ExitStack() as stack:

        def start(threads: int, number: int) -> Child:
            log_file = directory / f"bare-{threads}-{number}.log"
            process = running([*command, str(threads)], os.environ, log_file, piped=True)
            return Child(stack.enter_context(process), log_file)

        whole = [start(cores, 0)]
        single = [start(1, number) for number in range(cores)] if pictures and cores > 1 else []
        for child in [*whole, *single]:
            child.answer(START_TIMEOUT_SECONDS)
        limits = {"bare forward": _limit(whole, "forward")}
        if pictures:
            limits[f"bare pictures 1x{cores}"] = _limit(whole, "pictures")
        if single:
            limits[f"bare pictures {cores}x1"] = _limit(single, "pictures")
        yield limits


def _limit(children: Sequence[Child], kind: str) -> Callable[[float], Measurement]:
    def measure(seconds: float) -> Measurement:
        for child in children:
            child.tell(f"{kind} {seconds}")
        answers = [child.answer(seconds + GRACE_SECONDS) for child in children]
        return Measurement(sum(float(answer) for answer in answers))

    return measure
