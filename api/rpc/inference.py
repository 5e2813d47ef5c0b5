"""One infer call's way to the queue and back, by itself or in a stream."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import NamedTuple

from tritonclient.grpc import service_pb2 as proto

from api.access.shares import HeldBody, KeyShares
from api.infer.options import options_of
from api.infer.outputs import shown_outputs, timings_json
from api.infer.question import Pending, Question, shown_to
from api.infer.queues import Queues
from api.rpc.door import NOBODY, Caller
from api.rpc.reading import InferMessage
from api.rpc.requests import read_request
from api.tracing import TRACE
from shared.access.admission import Admission
from shared.errors import RequestExpired, VersionRetired
from shared.logs import REQUEST_ID_VARIABLE
from shared.messages import AnswerForm, InferResult
from shared.model_spec import ModelSpec
from shared.registry.catalog import Catalog


class Push(NamedTuple):
    """A checked request, and what was made of it."""

    question: Question
    pending: Pending


class Asked:
    """A request under way, asked again where it went to a version that was replaced.

    `until` is the monotonic second at which its call is over, `held` what it gives back then.
    """

    def __init__(
        self,
        request: InferMessage,
        until: float,
        pushed: Push,
        caller: Caller,
    ) -> None:
        """Hold a request that was pushed for a caller."""
        self.request = request
        self.caller = caller
        self.held = ExitStack()
        self.until = until
        self.pushed = pushed
        self._is_cancelled = False

    def cancel(self) -> None:
        """Take back the request, and what is asked in its place later. For any thread."""
        self._is_cancelled = True
        self.pushed.pending.cancel()

    def ask_anew(self, pushed: Push) -> Push:
        """Go on with another question, unless nobody waits any more."""
        self.pushed = pushed
        if self._is_cancelled:  # subtle: looked at last, or `cancel` might see the one before
            pushed.pending.cancel()
        return pushed


class InferCalls:
    """One request of ModelInfer or ModelStreamInfer: checked and pushed, waited for, answered."""

    def __init__(
        self, catalog: Catalog, queues: Queues, admission: Admission, bodies: KeyShares
    ) -> None:
        """Serve the catalog's models through the queues, to keys that have a place left.

        The `bodies` of the process are counted in bytes.
        """
        self._admission = admission
        self._bodies = bodies
        self._catalog = catalog
        self._queues = queues

    def push(
        self,
        request: InferMessage,
        remaining_seconds: float,
        caller: Caller = NOBODY,
        then: Callable[[], None] | None = None,
    ) -> Asked:
        """Check a request and push it, for no longer than the call has left; raises FerryError.

        It has a place of its key's, and its bytes, until what it `held` is given back. `then` is
        called once the model has answered. Next stop: `RequestQueue.push`.
        """
        until = time.monotonic() + remaining_seconds
        if caller.key is not None:
            caller.key.check("infer", request.message.model_name)
        return self._catalog.by_current(lambda: self._admit(request, until, caller, then))

    def _admit(
        self, request: InferMessage, until: float, caller: Caller, then: Callable[[], None] | None
    ) -> Asked:
        with ExitStack() as held:
            if request.size:
                body = HeldBody(self._bodies)
                held.callback(body.release)
                body.add(request.size, caller.key)
            question = self._question(request, until, caller)
            if caller.key is not None:  # for as long as the request may take, and not its call
                seconds = self._queues.timeout_seconds(question)
                held.enter_context(self._admission.place(caller.key, seconds))
            pushed = Push(question, self._queues.push(question, then))
            asked = Asked(request, until, pushed, caller)
            asked.held.push(held.pop_all())
        return asked

    def _question(self, given: InferMessage, until: float, caller: Caller) -> Question:
        request = given.message
        spec = self._catalog.serving(request.model_name, request.model_version or None)
        body = read_request(given, spec)
        remaining_seconds = until - time.monotonic()
        if remaining_seconds <= 0:
            raise RequestExpired("Request timeout expired")
        told = {REQUEST_ID_VARIABLE: caller.known_as, TRACE: caller.trace}
        options = options_of(told, body.parameters)
        form = AnswerForm("infer", body.id, outputs=body.outputs, binary=True)
        named = bool(request.model_version)
        question = self._bounded(
            Question(spec, body.inputs, body.output_names, options, form, named), remaining_seconds
        )
        return question if caller.key is None else question.of_key(caller.key)

    def respond(self, asked: Asked, response: proto.ModelInferResponse) -> None:
        """Wait for the answer and write it into `response`; raises FerryError."""
        with asked.held:
            self._respond(asked, response)

    def _respond(self, asked: Asked, response: proto.ModelInferResponse) -> None:
        try:
            result = self._wait(asked.pushed)
        except VersionRetired:  # such requests go to another version by now
            self._catalog.refresh()
            result = self._catalog.by_current(
                lambda: self._wait(asked.ask_anew(self._again(asked)))
            )
        question = asked.pushed.question
        self._queues.copy_to_shadow(question, result)
        _fill(response, question.spec, shown_to(question.owner, result), question.form)

    def _again(self, asked: Asked) -> Push:
        question = self._question(asked.request, asked.until, asked.caller)
        return Push(question, self._queues.push(question))

    def _wait(self, pushed: Push) -> InferResult:
        return self._queues.wait(pushed.question.spec, pushed.pending)

    def _bounded(self, question: Question, remaining_seconds: float) -> Question:
        """Return the question with a time-out of its own `timeout` and the call's deadline."""
        seconds = min(self._queues.timeout_seconds(question), remaining_seconds)
        return question._replace(options=question.options.bounded(question.spec, seconds))


def _fill(
    response: proto.ModelInferResponse, spec: ModelSpec, result: InferResult, form: AnswerForm
) -> None:
    """Write the answer into an empty message, which may be part of another: no copy is made of it.

    What HTTP calls `timings` are parameters of the same names.
    """
    response.model_name, response.model_version, response.id = spec.name, spec.version, form.id
    for name, value in timings_json(result.timings).items():
        parameter = response.parameters[name]
        if isinstance(value, bool):
            parameter.bool_param = value
        elif isinstance(value, str):
            parameter.string_param = value
        elif isinstance(value, int):
            parameter.int64_param = value
        else:
            parameter.double_param = value
    for tensor, _ in shown_outputs(spec, result, form):
        response.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        response.raw_output_contents.append(bytes(tensor.data))  # bytes of bytes is no copy
