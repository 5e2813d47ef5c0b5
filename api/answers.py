"""From a result to the JSON of the route that was asked, at once or much later."""

from __future__ import annotations

from typing import Any

from api.json_answers import JsonAnswer, json_answer
from api.json_tensors import json_output
from api.predictions import describe_rows
from api.timings import server_timing, timings_json
from shared.messages import InferResult
from shared.model_spec import ModelSpec
from shared.records import How


def render(spec: ModelSpec, result: InferResult, how: How) -> JsonAnswer:
    """Return the answer; raises BadRequest for an output that JSON cannot carry."""
    if how.kind == "infer":
        answer: dict[str, Any] = {"model_name": spec.name, "model_version": spec.version}
        if how.id is not None:
            answer["id"] = how.id
        answer["outputs"] = [json_output(tensor) for tensor in result.outputs]
    else:
        if how.kind == "tensor":
            answer = {"prediction": result.outputs[0].array()}
        else:
            answer = _described(spec, result, how)
        answer["model"], answer["version"] = spec.name, spec.version
    answer["timings"] = timings_json(result.timings)
    return json_answer(answer, headers=(("Server-Timing", server_timing(result.timings)),))


def _described(spec: ModelSpec, result: InferResult, how: How) -> dict[str, Any]:
    rows = describe_rows(spec, result, how.top_k)
    for row, was_cut in zip(rows, how.cut or [False] * len(rows), strict=True):
        if was_cut:
            row["truncated"] = True
    return rows[0] if how.one else {"predictions": rows}
