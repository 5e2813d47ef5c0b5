"""A checked request, its model version, and the form of its answer, in one piece."""

from __future__ import annotations

from typing import NamedTuple

from api.infer.options import DEFAULT_OPTIONS, RequestOptions
from shared.messages import AnswerForm, InferRequest, Tensor
from shared.model_spec import ModelSpec


class Question(NamedTuple):
    """One request that fits its model; HTTP, gRPC and the shadows' copies all pass it whole.

    `outputs` names the wanted outputs, empty for all. `named` says that the client wants this
    version and no other.
    """

    spec: ModelSpec
    inputs: tuple[Tensor, ...]
    outputs: tuple[str, ...] = ()
    options: RequestOptions = DEFAULT_OPTIONS
    form: AnswerForm = AnswerForm("infer")
    named: bool = False

    def request(self, request_id: str, default_timeout_seconds: float) -> InferRequest:
        """Return the message for the queue: its rows are its first input's first dimension.

        Raises BadRequest for a priority that the model does not have.
        """
        spec, inputs, outputs, options = self[:4]
        return InferRequest(
            request_id,
            inputs[0].shape[0] if spec.batched else 1,
            inputs,
            outputs,
            options.deadline_seconds(spec, default_timeout_seconds),
            spec.signature(inputs),
            options.level(spec),
            options.parameters,
            options.queue_timeout_seconds if spec.queue_policies or spec.steps else 0.0,
            self.named,
        )
