"""The spans that a worker's processes add to the traces of the requests they answer.

Whether a request is traced was decided where it came in: its message says whose child these are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple

import redis

from shared.errors import FerryError
from shared.messages import InferResult
from shared.model_spec import ModelSpec
from shared.request_queue.claimed import Claimed, EncodedResults
from shared.tracing.switch import tracer_of
from shared.wire.packing import Command
from shared.wire.wire import Wire
from worker.job import InstanceJob

if TYPE_CHECKING:
    from shared.tracing.tracer import Tracer


BATCH_IN_HAND: ContextVar[BatchSpans | None] = ContextVar("BATCH_IN_HAND", default=None)
"""The spans of the batch that this thread works at; None in a process that makes none."""


class _Traced(NamedTuple):
    item: Claimed
    parent: Any


class _Pass(NamedTuple):
    ids: Collection[str]
    rows: int
    started_ns: int
    computed_ns: int


class WorkerTracing:
    """One process's spans, of its model's requests."""

    def __init__(self, tracer: Tracer, spec: ModelSpec, instance: str) -> None:
        """Add spans of `spec`, made by `instance`."""
        self.tracer = tracer
        self.close = tracer.close
        self.about: dict[str, str | int] = {
            "ferry.model": spec.name, "ferry.version": spec.version, "ferry.instance": instance,
        }  # fmt: skip
        self._unsent: list[BatchSpans] = []

    @classmethod
    def of(cls, job: InstanceJob) -> WorkerTracing | None:
        """Return those of an instance, None where no collector is named."""
        tracer = tracer_of(job.traces_url, "ferry-worker")
        return cls(tracer, job.spec, job.id) if tracer else None

    def traced(
        self, answer: Callable[[list[Claimed]], EncodedResults]
    ) -> Callable[[list[Claimed]], EncodedResults]:
        """Return what answers a batch as before, with spans of its traced requests.

        They end once the answers are written, by the wire of `wire`.
        """

        def answer_traced(claimed: list[Claimed]) -> EncodedResults:
            spans = BatchSpans(self, claimed)
            BATCH_IN_HAND.set(spans)
            answers = answer(claimed)
            if spans.note_answers(claimed, answers.results):
                self._unsent.append(spans)
            return answers

        return answer_traced

    def wire(self, client: redis.Redis) -> Wire:
        """Return a wire by which the answers leave: what it writes ends the batch before."""
        return _TellingWire(client.connection_pool.make_connection, self._sent)

    def note_queue(self, item: Claimed, parent: Any, claimed_ns: int) -> None:
        """Add the span of a request's time on the queue."""
        about = {"ferry.attempt": item.attempts, "ferry.priority": item.level}
        began_ns = claimed_ns - int(1e9 * item.queue_seconds)
        self.tracer.note("queue", parent, began_ns, claimed_ns, about)

    def _sent(self) -> None:
        while self._unsent:
            self._unsent.pop().end()


class BatchSpans:
    """One batch's spans, a set for each of its traced requests, so that each trace is whole.

    They are made at the end, by what was noted on the way: it costs untraced requests nothing.
    """

    def __init__(self, tracing: WorkerTracing, claimed: Sequence[Claimed]) -> None:
        """Begin now."""
        self._tracing = tracing
        self._claimed_ns = time.time_ns()
        self._ahead_ns = self._claimed_ns - time.monotonic_ns()
        self._about: dict[str, str | int] = {**tracing.about, "ferry.batch.requests": len(claimed)}
        self._traced: dict[str, _Traced] = {}
        self._passes: list[_Pass] = []
        self._errors: dict[str, FerryError] = {}

    def take(self, item: Claimed, traceparent: str) -> None:
        """Add a request, if it is traced."""
        parent = self._tracing.tracer.parent_in({"traceparent": traceparent})
        if parent is not None:
            self._traced[item.id] = _Traced(item, parent)

    def add_pass(
        self, served: Sequence[Claimed], rows: int, started: float, computed: float
    ) -> None:
        """Note a forward pass; in monotonic seconds."""
        if self._traced:
            times = [self._ahead_ns + int(1e9 * moment) for moment in (started, computed)]
            self._passes.append(_Pass({item.id for item in served}, rows, *times))

    def note_answers(self, claimed: Sequence[Claimed], results: Sequence[bytes]) -> bool:
        """Note which requests were answered with errors; tell whether any is traced."""
        if not self._traced:
            return False
        served = {each for one in self._passes for each in one.ids}
        for item, result in zip(claimed, results, strict=True):
            if item.id in self._traced and item.id not in served:
                error = InferResult.decode(result).error
                if error is not None:
                    self._errors[item.id] = error
        return True

    def end(self) -> None:
        """Make the spans of all traced requests, whose answers are written now."""
        now_ns = time.time_ns()
        links = [self._tracing.tracer.link_to(parent) for _, parent in self._traced.values()]
        for item, parent in self._traced.values():
            self._tracing.note_queue(item, parent, self._claimed_ns)
            self._end_one(item, parent, links, now_ns)

    def _end_one(self, item: Claimed, parent: Any, links: Sequence[Any], now_ns: int) -> None:
        tracer, last_ns = self._tracing.tracer, self._claimed_ns
        batch = tracer.begin(
            "batch", parent, began_ns=self._claimed_ns, links=links, about=self._about
        )
        inside = tracer.child_of(batch)
        for one in self._passes:
            if item.id in one.ids:
                rows = {"ferry.batch.rows": one.rows}
                tracer.note("forward", inside, one.started_ns, one.computed_ns, rows)
                last_ns = one.computed_ns
        tracer.note("publish", inside, last_ns, now_ns, {})
        if item.id in self._errors:
            tracer.fail(batch, self._errors[item.id])
        batch.end(now_ns)


class EnsembleSpans:
    """The spans of one request to an ensemble: its steps are in it, and their models' in these."""

    def __init__(self, tracing: WorkerTracing, item: Claimed, traceparent: str) -> None:
        """Begin now."""
        self._tracer = tracer = tracing.tracer
        parent = tracer.parent_in({"traceparent": traceparent})
        tracing.note_queue(item, parent, time.time_ns())
        self._span = tracer.begin("ensemble", parent, about=tracing.about)
        self._steps: dict[int, Any] = {}

    def ask(self, number: int, model: str) -> str:
        """Begin a step, unless it is asked again; return the `traceparent` for its model."""
        if number not in self._steps:
            about: dict[str, str | int] = {"ferry.step": number + 1, "ferry.model": model}
            inside = self._tracer.child_of(self._span)
            self._steps[number] = self._tracer.begin("step", inside, about=about)
        return self._tracer.traceparent_of(self._steps[number])

    def take_answer(self, number: int) -> None:
        """End a step that was answered."""
        if (span := self._steps.pop(number, None)) is not None:
            span.end()

    def fail(self, number: int, error: FerryError) -> None:
        """Mark a step, and the whole, as failed."""
        for span in (self._steps.get(number), self._span):
            if span is not None:
                self._tracer.fail(span, error)

    def end(self) -> None:
        """End the whole, and the steps that nobody waits for any more."""
        for span in (*self._steps.values(), self._span):
            span.end()


class _TellingWire(Wire):
    """A wire that tells when it has written."""

    def __init__(self, make_connection: Callable[[], Any], sent: Callable[[], None]) -> None:
        super().__init__(make_connection)
        self._sent = sent

    def send(self, *commands: Command) -> None:
        super().send(*commands)
        self._sent()
