"""A checked request, its model version, and the form of its answer, in one piece."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from api.access.guard import is_admin
from api.infer.options import DEFAULT_OPTIONS, RequestOptions
from shared.access.api_key import ApiKey
from shared.messages import AnswerForm, Buffer, InferRequest, InferResult, Tensor, Timings
from shared.model_spec import ModelSpec


class Pending(Protocol):
    """A request under way."""

    @property
    def is_open(self) -> bool:
        """Tell whether there is neither an answer nor an error yet."""
        ...

    def wait(self) -> InferResult:
        """Return the answer; raises the error in its place."""
        ...

    def cancel(self) -> None:
        """Tell that nobody waits any more."""
        ...


class NoRows(NamedTuple):
    """A request of no rows under way: its answer is there, and no model is asked."""

    result: InferResult
    is_open: bool = False

    def wait(self) -> InferResult:
        """Return the answer."""
        return self.result

    def cancel(self) -> None:
        """Leave it as it is."""


class Question(NamedTuple):
    """One request that fits its model; HTTP, gRPC and the shadows' copies all pass it whole.

    `outputs` names the wanted outputs, empty for all. `named` says that the client wants this
    version and no other. `sent` is what the client sent where the model's own description made the
    inputs of it: another version may make others. `owner` is the API key that it came with, None
    where there are none.
    """

    spec: ModelSpec
    inputs: tuple[Tensor, ...]
    outputs: tuple[str, ...] = ()
    options: RequestOptions = DEFAULT_OPTIONS
    form: AnswerForm = AnswerForm("infer")
    named: bool = False
    sent: tuple[Buffer, ...] = ()
    owner: ApiKey | None = None

    def of_key(self, key: ApiKey) -> Question:
        """Return the question as it is asked with an API key, which may lower its priority."""
        options, levels = self.options, self.spec.priority_levels
        if key.priority and levels:
            wanted = options.priority or self.spec.default_priority_level
            options = options._replace(priority=max(wanted, min(key.priority, levels)))
        elif self.owner is key:
            return self
        # fast: a third of what `_replace` takes.
        return Question(*self[:3], options, *self[4:7], owner=key)

    def request(self, request_id: str, default_timeout_seconds: float) -> InferRequest:
        """Return the message for the queue: its rows are its first input's first dimension.

        A request of no rows counts as one there; its instance answers it without the model. Raises
        BadRequest for a priority that the model does not have.
        """
        spec, inputs, outputs, options = self[:4]
        return InferRequest(
            request_id,
            (inputs[0].shape[0] or 1) if spec.batched else 1,
            inputs,
            outputs,
            options.deadline_seconds(spec, default_timeout_seconds),
            spec.signature(inputs),
            options.level(spec),
            options.parameters,
            options.queue_wish_seconds(spec),
            self.named,
            self.owner.id if self.owner else "",
            options.known_as,
            options.trace.traceparent if options.trace else "",
        )


def shown_to(key: ApiKey | None, result: InferResult) -> InferResult:
    """Return an answer without the instance that made it, whose name tells host and process."""
    if is_admin(key):
        return result
    outputs, timings, error = result
    return InferResult(outputs, Timings(*timings[:5], "", timings.cached), error)  # fast: as above
