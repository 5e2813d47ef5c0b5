"""Measures variants on this machine, each in processes of its own, in rounds that interleave.

An arrangement is a number of instances with their threads; instances x threads are the cores.
In each round every variant runs every batch size for a moment, one after another, so that what
else the machine does meets all of them alike. Medians over rounds count, and the spread is told.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

from worker.optimise.rows import Batch
from worker.optimise.subjects import Subject
from worker.optimise.tuning.machine import memory_bytes
from worker.optimise.tuning.task import Task
from worker.optimise.tuning.workshop import Clock, Helper, Outcome

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
FEWEST_ROUNDS, MOST_ROUNDS = 3, 7
GOOD_SIZES = 2
FIRST_ROUND_SHARE = 0.6
"""Of the time, what the first round has to leave."""
SHORTEST_SLICE_SECONDS, LONGEST_SLICE_SECONDS = 0.05, 0.5
"""Of one batch size in one round."""
LOAD_SECONDS = 120.0
OWN_STATUS = Path("/proc/self/status")
BATCH_COUNT = 3
"""Different batches that a measurement runs in turn."""


class Arrangement(NamedTuple):
    """A number of instances, and the threads of each."""

    instances: int
    threads: int


@dataclass(frozen=True)
class Candidate:
    """A model's file that is measured."""

    name: str
    file: Path
    backend: str


@dataclass
class Measured:
    """What was measured of one candidate; `rates` and `latencies` have one value a round."""

    load_seconds: list[float] = field(default_factory=list)
    memory_bytes: int = 0
    rates: dict[tuple[Arrangement, int], list[float]] = field(default_factory=dict)
    latencies: dict[Arrangement, list[float]] = field(default_factory=dict)
    fault: str = ""


def arrangements(cores: int) -> list[Arrangement]:
    """Return one instance with all cores, two with half of them each, and so on."""
    counts = [count for count in (1, 2, 4, 8, 16, 32) if count <= cores]
    return [Arrangement(count, max(1, cores // count)) for count in counts]


def batch_sizes(most: int) -> list[int]:
    """Return the sizes to measure: powers of two, and the largest."""
    return sorted({size for size in BATCHES if size < most} | {most})


def measure(
    task: Task, candidates: Sequence[Candidate], cores: int, clock: Clock
) -> dict[str, Measured]:
    """Measure all candidates, the original among them, until the clock ends.

    One that crashes or hangs keeps its fault, and the others are measured on.
    """
    found = {each.name: Measured() for each in candidates}
    wanted = arrangements(cores)
    for at, arrangement in enumerate(wanted):
        seconds = clock.left() / (len(wanted) - at)
        for group in _groups(candidates, found, arrangement):
            share = seconds * len(group) / max(1, len(candidates))
            _measure_placed(task, group, arrangement, found, Clock(share))
    return found


def _groups(
    candidates: Sequence[Candidate], found: Mapping[str, Measured], arrangement: Arrangement
) -> list[list[Candidate]]:
    """Return candidates that fit into half of the free memory together, the first in each."""
    free = memory_bytes("MemAvailable") / 2
    first, *others = [each for each in candidates if not found[each.name].fault]
    groups, size = [[first]], 0.0
    for each in others:
        needed = arrangement.instances * (found[each.name].memory_bytes or 3 * _size(each))
        if size + needed > free and len(groups[-1]) > 1:
            groups.append([first])
            size = 0.0
        groups[-1].append(each)
        size += needed
    return groups


def _size(candidate: Candidate) -> int:
    return candidate.file.stat().st_size


def _measure_placed(
    task: Task,
    candidates: Sequence[Candidate],
    arrangement: Arrangement,
    found: Mapping[str, Measured],
    clock: Clock,
) -> None:
    """Run rounds: the first of all batch sizes, the others of those that were good in it."""
    sizes = batch_sizes(task.model.spec.batch_rows)
    wanted = {each.name: sizes for each in candidates}
    with ExitStack() as stack:
        teams = {each.name: _Team(task, each, arrangement, stack) for each in candidates}
        for name, team in teams.items():
            team.await_ready(found[name])
        for number in range(MOST_ROUNDS):
            if number >= FEWEST_ROUNDS and not clock.left():
                break
            slots = (MOST_ROUNDS - number) * sum(map(len, wanted.values()))
            seconds = min(LONGEST_SLICE_SECONDS, max(SHORTEST_SLICE_SECONDS, clock.left() / slots))
            for size in sizes:
                if number == 0 and size > 1 and clock.left() < FIRST_ROUND_SHARE * clock.seconds:
                    break  # larger ones take longer still
                for name in _turned(list(teams), number):
                    if size in wanted[name] and not found[name].fault:
                        teams[name].measure(size, seconds, found[name])
            if number == 0:
                wanted = {each: _good_sizes(found[each], arrangement, sizes) for each in teams}
        for name, team in teams.items():
            team.note_memory(found[name])


def _good_sizes(found: Measured, arrangement: Arrangement, sizes: list[int]) -> list[int]:
    """Return 1, for its latency, and the sizes of the highest rates in the first round."""
    run = [size for size in sizes if (arrangement, size) in found.rates]
    best = sorted(run, key=lambda size: found.rates[arrangement, size][0])[-GOOD_SIZES:]
    return sorted({*run[:1], *best})


def _turned(names: list[str], number: int) -> list[str]:
    """Return the names from another one on in each round."""
    start = number % max(1, len(names))
    return names[start:] + names[:start]


class _Team:
    """The instances of one candidate, which run at the same time."""

    def __init__(
        self, task: Task, candidate: Candidate, arrangement: Arrangement, stack: ExitStack
    ) -> None:
        """Start them."""
        self._placement = arrangement
        self._helpers = [
            stack.enter_context(
                Helper(serve, task, candidate.file, candidate.backend, arrangement.threads)
            )
            for _ in range(arrangement.instances)
        ]

    def await_ready(self, found: Measured) -> None:
        """Wait until all have loaded."""
        for outcome in self._results(found, LOAD_SECONDS):
            found.load_seconds.append(outcome.value)

    def measure(self, size: int, seconds: float, found: Measured) -> None:
        """Have all of them run batches of a size at the same time."""
        for helper in self._helpers:
            helper.send((size, seconds))
        outcomes = list(self._results(found, LOAD_SECONDS))
        if found.fault:
            return
        rate = sum(size * len(each.value) / sum(each.value) for each in outcomes)
        found.rates.setdefault((self._placement, size), []).append(rate)
        if size == 1:
            median = statistics.median(took for each in outcomes for took in each.value)
            found.latencies.setdefault(self._placement, []).append(median)

    def note_memory(self, found: Measured) -> None:
        """Keep the most memory that one of them has used."""
        for helper in self._helpers:
            helper.send(None)
        for outcome in self._results(found, LOAD_SECONDS):
            found.memory_bytes = max(found.memory_bytes, outcome.value)

    def _results(self, found: Measured, seconds: float) -> Iterator[Outcome]:
        for helper in self._helpers:
            if found.fault:
                return
            outcome = helper.result(seconds)
            if outcome.fault:
                found.fault = outcome.fault
                return
            yield outcome


def serve(pipe: Connection, task: Task, file: Path, backend: str, threads: int) -> int:
    """Load a model, then time as many passes as fit into the seconds that are asked for.

    Returns the most memory that the process has used.
    """
    started = time.perf_counter()
    subject = task.subject(file, backend, threads)
    pipe.send(Outcome(time.perf_counter() - started))
    warm: dict[int, list[Batch]] = {}
    while (asked := pipe.recv()) is not None:
        size, seconds = asked
        if size not in warm:
            batches = [_rows(task, size, at) for at in range(BATCH_COUNT)]
            warm[size] = batches
            subject.backend.forward(batches[0].inputs, batches[0].pixels)
        pipe.send(Outcome(_timed(subject, warm[size], seconds)))
    return memory_bytes("VmHWM", OWN_STATUS)


def _timed(subject: Subject, batches: Sequence[Batch], seconds: float) -> list[float]:
    times: list[float] = []
    end = time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        batch = batches[len(times) % len(batches)]
        started = time.perf_counter()
        subject.backend.forward(batch.inputs, batch.pixels)
        times.append(time.perf_counter() - started)
    return times


def _rows(task: Task, size: int, at: int) -> Batch:
    count = task.rows.count
    return task.rows.take([(at * size + each) % count for each in range(size)])
