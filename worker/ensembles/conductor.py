"""Runs an ensemble's requests, many at once: asks each step when its inputs are there.

One thread does it all, driven by what comes: requests that were claimed, steps that were answered.
So nothing here needs a lock, and what comes meanwhile is published in one write.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from queue import Empty, SimpleQueue
from threading import Thread
from typing import NamedTuple

from redis.exceptions import RedisError

from shared.errors import (
    BadMessage,
    FerryError,
    RedisUnavailable,
    RequestExpired,
    VersionRetired,
)  # fmt: skip
from shared.model_spec import ModelSpec
from shared.request_queue.claimed import Claimed
from worker.ensembles.graph import Graph
from worker.ensembles.outbox import Outbox
from worker.ensembles.run import Run, failed
from worker.ensembles.step_queues import Question, StepQueues, step_level
from worker.ensembles.tensors import check_asked, step_inputs
from worker.ensembles.work import EnsembleQueue, Finished, Seats
from worker.meter import Meter

log = logging.getLogger(__name__)

Event = Callable[[], None]
TICK_SECONDS = 0.25
RETRY_SECONDS = 0.05
"""After how long a step is asked again whose request could not be stored."""
LATE_SECONDS = 10.0
"""How long after its deadline a step must be over; the courier sees to it within milliseconds."""
MAX_EVENTS = 256
"""How many events are taken before answers are published."""


class _Later(NamedTuple):
    """What is to be done at a time (monotonic seconds); the number keeps the order."""

    due: float
    number: int
    event: Event


class Conductor:
    """All requests that one process of an ensemble has under way."""

    def __init__(
        self,
        spec: ModelSpec,
        queue: EnsembleQueue,
        steps: StepQueues,
        seats: Seats,
        meter: Meter,
        instance: str,
    ) -> None:
        """Answer to `queue`, which no other thread uses; `start` begins."""
        self._spec = spec
        self._graph = Graph(spec)
        self._queue = queue
        self._steps = steps
        self._seats = seats
        self._meter = meter
        self._instance = instance
        self._events: SimpleQueue[Event] = SimpleQueue()
        self._runs: dict[str, Run] = {}
        self._later: list[_Later] = []
        self._numbers = itertools.count()
        self._outbox = Outbox(queue, seats, meter)
        self._next_look = 0.0
        self._stopped = False

    def start(self) -> None:
        """Start the thread."""
        Thread(target=self._conduct, name="ferry-conduct", daemon=True).start()

    def stop(self) -> None:
        """Have the thread end, whatever is under way."""
        self._events.put(self._stop)

    def begin(self, claimed: Sequence[Claimed]) -> None:
        """Run what was claimed; for the thread that claims."""
        self._seats.take(claimed)
        for item in claimed:
            self._events.put(partial(self._begin, item))

    def _conduct(self) -> None:
        try:
            while not self._stopped:
                self._meter.busy_since = time.monotonic() if self._is_busy else 0.0
                self._take_events()
                self._steps.release()
                self._look()
                self._outbox.publish()
        except Exception:  # a border: the supervisor puts back what is under way here
            log.exception("%s: the ensemble's process ends and is replaced", self._spec.key)
            os._exit(1)

    @property
    def _is_busy(self) -> bool:
        return bool(self._runs or self._outbox.waiting)

    def _stop(self) -> None:
        self._stopped = True

    def _take_events(self) -> None:
        """Handle what came, waiting for it when there is nothing else to do."""
        try:
            event = self._events.get(timeout=self._pause())
            self._meter.busy_since = time.monotonic()
            for _ in range(MAX_EVENTS):
                event()
                event = self._events.get_nowait()
            event()
        except Empty:
            pass
        while self._later and self._later[0].due <= time.monotonic():
            heapq.heappop(self._later).event()

    def _pause(self) -> float:
        due = [time.monotonic() + TICK_SECONDS]
        due += [self._later[0].due] if self._later else []
        due += [self._outbox.next_try] if self._outbox.waiting else []
        return max(0.001, min(due) - time.monotonic())

    def _begin(self, item: Claimed) -> None:
        if item.id in self._runs:  # Redis came back empty, and its client pushed it again
            self._runs[item.id].tickets.append(item.ticket)
            return
        try:
            request = item.request()
        except BadMessage as error:
            log.warning("request %s cannot be decoded, answering it with the error", item.id)
            self._outbox.add(failed(item, error, time.monotonic(), [item.ticket]))
            return
        run = Run(item, request, self._spec, self._graph.needed(request.outputs))
        self._runs[item.id] = run
        self._advance(run)

    def _advance(self, run: Run) -> None:
        """Ask every step whose inputs are there; when all are answered, the request is."""
        for number, _ in run.next_steps():
            self._ask(run, number)
        if run.is_complete and run.item.id in self._runs:
            self._end(run, run.finished(self._instance))

    def _ask(self, run: Run, number: int) -> None:
        """Ask a step's model (stop 2 once more); its answer comes to `_arrived`."""
        if run.item.id not in self._runs:
            return  # it failed, or its client left
        step = self._spec.steps[number]
        try:
            model = self._steps.model(step)
            check_asked(step, model)
            question = Question(
                model,
                step_inputs(self._spec, step, model, run.tensors),
                run.outputs_of(number),
                run.deadline,
                step_level(self._spec, run.item.level, model),
                run.request.parameters,
            )
            answered = partial(self._events.put, partial(self._arrived, run, number))
            run.asked[number] = self._steps.push(question, answered)
        except RedisUnavailable:
            self._ask_later(run, number)
        except FerryError as error:
            self._fail(run, number, error)

    def _ask_later(self, run: Run, number: int) -> None:
        due = time.monotonic() + RETRY_SECONDS
        if due < run.deadline:
            event = partial(self._ask, run, number)
            heapq.heappush(self._later, _Later(due, next(self._numbers), event))
        else:
            self._fail(run, number, RequestExpired("Request timeout expired"))

    def _arrived(self, run: Run, number: int) -> None:
        """Take in a step's answer, or its error."""
        waiting = run.asked.pop(number, None)
        if waiting is None:
            return  # taken back
        try:
            run.take(number, waiting.wait())
        except (RedisUnavailable, VersionRetired):
            self._ask_later(run, number)
        except FerryError as error:
            self._fail(run, number, error)
        else:
            self._advance(run)

    def _fail(self, run: Run, number: int, error: FerryError) -> None:
        """Answer with a step's error, under the step's name."""
        model = self._spec.steps[number].model
        where = f"in ensemble '{self._spec.name}', step {number + 1} ('{model}')"
        self._end(run, run.failed(type(error)(f"{where}: {error.message}")))

    def _end(self, run: Run, finished: Finished) -> None:
        run.cancel()
        del self._runs[run.item.id]
        self._outbox.add(finished)

    def _look(self) -> None:
        """Let go of requests whose client left, or whose deadline the API saw pass."""
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + TICK_SECONDS
        late = [run for run in self._runs.values() if run.deadline + LATE_SECONDS < now]
        assert not late, "a step is over soon after its deadline, this is a bug"
        ids = [run.item.id for run in self._runs.values() if run.started_at < now - TICK_SECONDS]
        try:
            unwanted = [self._runs[found] for found in self._queue.closed(ids)] if ids else []
            for run in unwanted:
                self._queue.drop(run.tickets)
                run.cancel()
                del self._runs[run.item.id]
                self._seats.leave(run.tickets)
        except RedisError as error:
            log.info("requests nobody waits for any more go on, Redis fails: %s", error)
