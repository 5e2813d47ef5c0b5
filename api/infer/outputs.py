"""v2's outputs as they were asked for, whatever transport carries them."""

from __future__ import annotations

from api.payloads.classification import classified
from shared.messages import AnswerForm, InferResult, Tensor
from shared.model_spec import ModelSpec


def shown_outputs(
    spec: ModelSpec, result: InferResult, form: AnswerForm
) -> list[tuple[Tensor, bool]]:
    """Return v2's outputs as they were asked for, each with whether it is to be binary."""
    if not form.outputs:
        return [(tensor, form.binary) for tensor in result.outputs]
    return [
        (classified(tensor, item.class_count, spec) if item.class_count else tensor, item.binary)
        for tensor, item in zip(result.outputs, form.outputs, strict=True)
    ]
