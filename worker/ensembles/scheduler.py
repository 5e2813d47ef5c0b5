"""Runs an ensemble's requests, many at once: asks each step when its inputs are there."""

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
from shared.messages import InferResult
from shared.model_spec import ModelSpec
from shared.request_queue.claimed import Claimed
from worker.ensembles.ensemble_queue import EnsembleQueue, Finished, Outbox, RowBudget
from worker.ensembles.ensemble_request import EnsembleRequest, failed
from worker.ensembles.graph import Graph
from worker.ensembles.step_queues import StepQueues, StepRequest, step_level
from worker.ensembles.step_tensors import check_asked, step_inputs
from worker.meter import Meter
from worker.tracing import EnsembleSpans, WorkerTracing

log = logging.getLogger(__name__)

Event = Callable[[], None]
UNWANTED_CHECK_SECONDS = 0.25
"""Between two checks for unwanted requests; also the longest wait for an event."""
STEP_RETRY_SECONDS = 0.05
"""Until a step is asked again whose request could not be stored."""
STEP_LATE_SECONDS = 10.0
"""After its deadline, by when a step must be over; the courier sees to it within milliseconds."""
MAX_EVENTS = 256
"""Handled before answers are published."""


class _Retry(NamedTuple):
    """A step to ask again at `due` (monotonic seconds); the number keeps the order."""

    due: float
    number: int
    event: Event


class EnsembleScheduler:
    """All requests that one process of an ensemble has under way.

        claiming thread        this thread                              courier's threads
        begin ---------- events ----> _begin
                                        _advance -> _ask --- push ----> step model's queue
                         events ----> _take_answer <------------------- answer, error, time-out
                                        _advance, or _end
                                      outbox.publish ---------------> ensemble's queue

    One thread runs it all, driven by events: claimed requests, answered steps. So no state here
    needs a lock, and the answers that gather meanwhile are published in one write.
    """

    def __init__(
        self,
        spec: ModelSpec,
        queue: EnsembleQueue,
        steps: StepQueues,
        budget: RowBudget,
        meter: Meter,
        instance: str,
    ) -> None:
        """Publish to `queue`, which no other thread uses; `start` begins."""
        self._spec = spec
        self._graph = Graph(spec)
        self._queue = queue
        self._steps = steps
        self._budget = budget
        self._meter = meter
        self._instance = instance
        self._events: SimpleQueue[Event] = SimpleQueue()
        self._requests: dict[str, EnsembleRequest] = {}
        self._retries: list[_Retry] = []
        self._numbers = itertools.count()
        self._outbox = Outbox(queue, budget, meter)
        self._next_check = 0.0
        self._stopped = False
        self.tracing: WorkerTracing | None = None

    def start(self) -> None:
        """Start the thread."""
        Thread(target=self._run, name="ferry-scheduler", daemon=True).start()

    def stop(self) -> None:
        """End the thread, whatever is under way."""
        self._events.put(self._stop)

    def begin(self, claimed: Sequence[Claimed]) -> None:
        """Take over claimed requests; for the thread that claims."""
        self._budget.reserve(claimed)
        for item in claimed:
            self._events.put(partial(self._begin, item))

    def _run(self) -> None:
        try:
            while not self._stopped:
                self._meter.busy_since = time.monotonic() if self._is_busy else 0.0
                self._take_events()
                self._steps.release()  # what all these events pushed, in one write for each model
                self._drop_unwanted()
                self._outbox.publish()
        except Exception:  # a border: the supervisor puts back what is under way here
            log.exception("%s: the ensemble's process ends and is replaced", self._spec.key)
            os._exit(1)  # sys.exit would end this thread only

    @property
    def _is_busy(self) -> bool:
        return bool(self._requests or self._outbox.waiting)

    def _stop(self) -> None:
        self._stopped = True

    def _take_events(self) -> None:
        """Handle the events that are there, waiting for one when there is nothing else to do."""
        try:
            event = self._events.get(timeout=self._pause())
            self._meter.busy_since = time.monotonic()
            for _ in range(MAX_EVENTS):
                event()
                event = self._events.get_nowait()
            event()
        except Empty:
            pass
        while self._retries and self._retries[0].due <= time.monotonic():
            heapq.heappop(self._retries).event()

    def _pause(self) -> float:
        due = [time.monotonic() + UNWANTED_CHECK_SECONDS]
        due += [self._retries[0].due] if self._retries else []
        due += [self._outbox.next_try] if self._outbox.waiting else []
        return max(0.001, min(due) - time.monotonic())

    def _begin(self, item: Claimed) -> None:
        if item.id in self._requests:  # Redis came back empty, and its client pushed it again
            self._requests[item.id].tickets.append(item.ticket)
            return
        try:
            decoded = item.request()
        except BadMessage as error:
            log.warning("request %s cannot be decoded, answering it with the error", item.id)
            self._outbox.add(failed(item, error, time.monotonic(), [item.ticket]))
            return
        request = EnsembleRequest(item, decoded, self._spec, self._graph.needed(decoded.outputs))
        if self.tracing is not None and decoded.traceparent:
            request.spans = EnsembleSpans(self.tracing, item, decoded.traceparent)
        self._requests[item.id] = request
        self._advance(request)

    def _advance(self, request: EnsembleRequest) -> None:
        """Ask every step whose inputs are there; when all are answered, the request is."""
        for number, _ in request.next_steps():
            self._ask(request, number)
        if request.is_complete and request.claimed.id in self._requests:
            self._end(request, request.finished(self._instance))

    def _ask(self, request: EnsembleRequest, number: int) -> None:
        """Push a request to a step's model; its answer comes to `_take_answer`."""
        if request.claimed.id not in self._requests:
            return  # it failed, or its client left
        try:
            asked = self._steps.by_current(lambda: self._question(request, number))
            if isinstance(asked, InferResult):
                request.add_result(number, asked)
                self._advance(request)
                return
            answered = partial(self._events.put, partial(self._take_answer, request, number))
            request.asked[number] = self._steps.push(asked, answered)
        except (RedisUnavailable, VersionRetired):
            self._ask_later(request, number)
        except FerryError as error:
            self._fail(request, number, error)

    def _question(self, request: EnsembleRequest, number: int) -> StepRequest | InferResult:
        """Return a step's request to the model that answers it now; of no rows, the answer.

        Raises FerryError when the model does not fit the step.
        """
        step = self._spec.steps[number]
        model, named = self._steps.model(step), bool(step.version)
        check_asked(step, model)
        inputs = step_inputs(self._spec, step, model, request.tensors)
        if not model.has_rows(inputs):
            self._steps.check_serves(model, named=named)
            return InferResult(model.answer_to_no_rows(request.outputs_of(number)))
        return StepRequest(
            model,
            inputs,
            request.outputs_of(number),
            request.deadline,
            step_level(self._spec, request.claimed.level, model),
            request.decoded.parameters,
            named,
            request.decoded.queue_timeout_seconds,
            request.decoded.owner,
            request.decoded.known_as,
            request.traceparent_of(number, step.model),
        )

    def _ask_later(self, request: EnsembleRequest, number: int) -> None:
        due = time.monotonic() + STEP_RETRY_SECONDS
        if due < request.deadline:
            event = partial(self._ask, request, number)
            heapq.heappush(self._retries, _Retry(due, next(self._numbers), event))
        else:
            self._fail(request, number, RequestExpired("Request timeout expired"))

    def _take_answer(self, request: EnsembleRequest, number: int) -> None:
        """Continue with a step's answer; fail with its error, or ask again where that may help."""
        waiting = request.asked.pop(number, None)
        if waiting is None:
            return  # cancelled
        try:
            request.add_result(number, waiting.wait())
            if request.spans is not None:
                request.spans.take_answer(number)
        except (RedisUnavailable, VersionRetired) as error:
            if isinstance(error, VersionRetired):
                self._steps.refresh()
            self._ask_later(request, number)
        except FerryError as error:
            self._fail(request, number, error)
        else:
            self._advance(request)

    def _fail(self, request: EnsembleRequest, number: int, error: FerryError) -> None:
        """Answer with a step's error, under the step's name."""
        model = self._spec.steps[number].model
        if request.spans is not None:
            request.spans.fail(number, error)
        where = f"in ensemble '{self._spec.name}', step {number + 1} ('{model}')"
        self._end(request, request.failed(type(error)(f"{where}: {error.message}")))

    def _end(self, request: EnsembleRequest, finished: Finished) -> None:
        request.cancel()
        del self._requests[request.claimed.id]
        self._outbox.add(finished)

    def _drop_unwanted(self) -> None:
        """Drop requests whose client left, or whose deadline the API saw pass."""
        now = time.monotonic()
        if now < self._next_check:
            return
        self._next_check = now + UNWANTED_CHECK_SECONDS
        late = [one for one in self._requests.values() if one.deadline + STEP_LATE_SECONDS < now]
        assert not late, "a step is over soon after its deadline, this is a bug"
        ids = [
            one.claimed.id
            for one in self._requests.values()
            if one.started_at < now - UNWANTED_CHECK_SECONDS
        ]
        try:
            unwanted = [self._requests[found] for found in self._queue.closed(ids)] if ids else []
            for request in unwanted:
                self._queue.drop(request.tickets)
                request.cancel()
                del self._requests[request.claimed.id]
                self._budget.release(request.tickets)
        except RedisError as error:
            log.info("requests nobody waits for any more go on, Redis fails: %s", error)
