"""The parts of an answer that HTTP and gRPC share: v2's outputs, and the timings.

Apart from `render`, whose formats are HTTP's alone.
"""

from __future__ import annotations

from api.payloads.classification import classified
from shared.messages import AnswerForm, InferResult, Tensor, Timings
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


def timings_json(timings: Timings) -> dict[str, float | int | str]:
    """Return seconds, batch size (rows), attempts and instance by name; `cached` only if it was."""
    described: dict[str, float | int | str] = {
        "queue_seconds": _to_microseconds(timings.queue_seconds),
        "batch_wait_seconds": _to_microseconds(timings.batch_wait_seconds),
        "compute_seconds": _to_microseconds(timings.compute_seconds),
        "batch_size": timings.batch_size,
        "attempts": timings.attempts,
        "instance": timings.instance,
    }
    if timings.cached:
        described["cached"] = True
    return described


def server_timing(timings: Timings) -> str:
    """Return the header's value; its durations are milliseconds."""
    return (
        f"queue;dur={timings.queue_seconds * 1e3:.3f}, "
        f"batch-wait;dur={timings.batch_wait_seconds * 1e3:.3f}, "
        f"compute;dur={timings.compute_seconds * 1e3:.3f}, "
        f'batch;desc="{timings.batch_size} rows", instance;desc="{timings.instance}"'
    )


def _to_microseconds(seconds: float) -> float:
    """Round to six digits, at a third of what `round(seconds, 6)` costs."""
    return round(seconds * 1e6) / 1e6
