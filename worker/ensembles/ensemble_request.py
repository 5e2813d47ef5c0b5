"""One request under way through an ensemble's steps, and the answer it ends with."""

from __future__ import annotations

import time

from shared.errors import BadModelOutput, FerryError
from shared.messages import InferRequest, InferResult, Tensor
from shared.model_spec import ModelSpec
from shared.request_queue.api_end import PendingRequest
from shared.request_queue.claimed import MAX_RESULT_BYTES, Claimed, EncodedResults
from shared.request_queue.model_statistics import Pass, encode_costs
from worker.ensembles.ensemble_queue import Finished
from worker.ensembles.graph import ReadyStep, Steps, ready_steps
from worker.ensembles.step_tensors import ensemble_outputs
from worker.tracing import EnsembleSpans


class EnsembleRequest:
    """A claimed request under way: its tensors so far, the steps asked, and those to come.

    A step is pending until its inputs are there, then asked, and open until it is answered.
    `deadline` and `started_at` are monotonic seconds.
    """

    def __init__(
        self, claimed: Claimed, decoded: InferRequest, spec: ModelSpec, steps: Steps
    ) -> None:
        """Begin with the request's own tensors; an optional one that is missing is None."""
        self.claimed = claimed
        self.decoded = decoded
        self.started_at = time.monotonic()
        self.deadline = self.started_at + claimed.deadline - claimed.claimed_at
        self.tickets = [claimed.ticket]
        self.asked: dict[int, PendingRequest] = {}
        self.spans: EnsembleSpans | None = None
        self._spec = spec
        self._steps = steps
        self._pending = set(steps)
        self._open = set(steps)
        given = {tensor.name: tensor for tensor in decoded.inputs}
        self.tensors: dict[str, Tensor | None] = {
            declared.name: given.get(declared.name) for declared in spec.inputs
        }

    def next_steps(self) -> list[ReadyStep]:
        """Return the steps whose inputs are all there now, each once."""
        ready = ready_steps(self._spec, sorted(self._pending), self.tensors)
        self._pending -= {each.number for each in ready}
        return ready

    def outputs_of(self, number: int) -> tuple[str, ...]:
        """Return the outputs that a step's model is asked for."""
        return self._steps[number]

    def traceparent_of(self, number: int, model: str) -> str:
        """Return what a step's model is told of its trace: its own spans are the step's."""
        if self.spans is None:
            return self.decoded.traceparent
        return self.spans.ask(number, model)

    def add_result(self, number: int, result: InferResult) -> None:
        """Keep the tensors that a step's model answered, under their names in the ensemble."""
        self._open.remove(number)
        names = self._spec.steps[number].output_map
        for tensor in result.outputs:
            name = names[tensor.name]
            self.tensors[name] = tensor._replace(name=name)

    @property
    def is_complete(self) -> bool:
        """Tell whether all steps are answered."""
        return not self._open

    def finished(self, instance: str) -> Finished:
        """Return the answer: the wanted outputs, or the error of one that does not fit."""
        item, wanted = self.claimed, self.decoded.outputs
        seconds = time.monotonic() - self.started_at
        timings = item.timings(0.0, seconds, item.rows, instance)
        try:
            rows = item.rows if self._spec.has_rows(self.decoded.inputs) else 0
            outputs = ensemble_outputs(self._spec, wanted, self.tensors, rows)
            answer = InferResult(outputs, timings).encode()
            if len(answer) > MAX_RESULT_BYTES:
                raise BadModelOutput(
                    f"the answer has {len(answer)} bytes, at most {MAX_RESULT_BYTES} can be "
                    "handed out"
                )
        except FerryError as error:
            return failed(item, error, self.started_at, self.tickets)
        costs = encode_costs([item], [Pass([item], item.rows, 0.0, seconds, 0.0)], seconds)
        return Finished(item, EncodedResults([answer], costs), tuple(self.tickets))

    def failed(self, error: FerryError) -> Finished:
        """Return an error as the answer."""
        return failed(self.claimed, error, self.started_at, self.tickets)

    def cancel(self) -> None:
        """Cancel the steps that are under way, and end what is told of it: it is over."""
        if self.spans is not None:
            self.spans.end()
        for waiting in self.asked.values():
            waiting.cancel()
        self.asked.clear()


def failed(item: Claimed, error: FerryError, started_at: float, tickets: list[bytes]) -> Finished:
    """Return an error as the answer to a claimed request."""
    costs = encode_costs([item], [], time.monotonic() - started_at)
    answers = EncodedResults([InferResult(error=error).encode()], costs)
    return Finished(item, answers, tuple(tickets))
