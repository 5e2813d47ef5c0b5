"""One infer call's way to the queue and back (stops 1 and 8), by itself or in a stream."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from tritonclient.grpc import service_pb2 as proto

from api.infer.options import RequestOptions, options_of
from api.infer.queues import Answered, Queues
from api.rpc.answers import fill
from api.rpc.requests import read_request
from shared.errors import RequestExpired, VersionRetired
from shared.messages import AnswerForm, Parameters
from shared.model_spec import ModelSpec
from shared.registry.catalog import Catalog
from shared.request_queue.api_end import PendingRequest


class Asked(NamedTuple):
    """A request under way, and how its answer is to be written."""

    spec: ModelSpec
    how: AnswerForm
    waiting: PendingRequest
    again: Callable[[ModelSpec], Answered]
    """Asks once more, should the version leave before it takes the request."""
    compare: Callable[..., None]
    """Has the answer compared with that of the model's shadow, if it has one."""


class InferCalls:
    """What ModelInfer and ModelStreamInfer do with one request."""

    def __init__(self, catalog: Catalog, queues: Queues) -> None:
        """Serve the catalog's models through the queues."""
        self._catalog = catalog
        self._queues = queues

    def push(self, request: proto.ModelInferRequest, remaining_seconds: float) -> Asked:
        """Check a request and push it, for no longer than the call has left; raises FerryError.

        Next stop: `RequestQueue.push`.
        """
        spec = self._catalog.serving(request.model_name, request.model_version or None)
        body = read_request(request, spec)
        options = self._options(spec, body.parameters, remaining_seconds)
        waiting = self._queues.push(spec, body.inputs, body.output_names, options)
        how = AnswerForm("infer", body.id, outputs=body.outputs, binary=True)
        again = partial(
            self._queues.ask, inputs=body.inputs, outputs=body.output_names, options=options,
            named=bool(request.model_version),
        )  # fmt: skip
        compare = partial(
            self._queues.copy_to_shadow,
            inputs=body.inputs, outputs=body.output_names, options=options,
        )  # fmt: skip
        return Asked(spec, how, waiting, again, compare)

    def respond(self, asked: Asked, response: proto.ModelInferResponse) -> None:
        """Wait for the answer and write it into `response`; raises FerryError."""
        try:
            result = self._queues.wait(asked.spec, asked.waiting)
            asked.compare(asked.spec, result=result)
            answered = Answered(asked.spec, result)
        except VersionRetired:
            answered = asked.again(asked.spec)
        fill(response, answered.spec, answered.result, asked.how)

    def _options(
        self, spec: ModelSpec, parameters: Parameters, remaining_seconds: float
    ) -> RequestOptions:
        """Return a request's options, bounded by its own `timeout` and the call's deadline."""
        if remaining_seconds <= 0:
            raise RequestExpired("Request timeout expired")
        options = options_of({}, parameters)
        seconds = min(self._queues.timeout_seconds(spec, options), remaining_seconds)
        wish = options.queue_timeout_seconds if spec.queue_policies else 0.0
        return options._replace(timeout_seconds=seconds, queue_timeout_seconds=wish)
