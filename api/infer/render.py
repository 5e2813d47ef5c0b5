"""Results to HTTP answers, in the form that the request asked for."""

from __future__ import annotations

from typing import Any

import numpy as np

from api.infer.answer import Headers, HttpAnswer, json_answer
from api.infer.outputs import server_timing, shown_outputs, timings_json
from api.payloads.binary_tensors import HEADER
from api.payloads.predictions import describe_rows
from api.payloads.v1_json import FORMS, v1_values
from api.payloads.v2_json import binary_output, json_output
from shared.messages import AnswerForm, InferResult, Tensor
from shared.model_spec import ModelSpec


def render(spec: ModelSpec, result: InferResult, form: AnswerForm) -> HttpAnswer:
    """Return a result's answer; raises BadRequest for an output that JSON cannot carry."""
    if form.kind == "infer":
        return _inferred(spec, result, form)
    if form.kind in FORMS.values():
        body = {form.kind: v1_values(result, form.kind), "timings": timings_json(result.timings)}
        return json_answer(body, headers=_headers(spec, result))
    if form.kind == "tensor":
        answer: dict[str, Any] = {"prediction": _prediction(result.outputs[0])}
    else:
        answer = _described(spec, result, form)
    answer["model"], answer["version"] = spec.name, spec.version
    answer["timings"] = timings_json(result.timings)
    return json_answer(answer, headers=_headers(spec, result))


def _inferred(spec: ModelSpec, result: InferResult, form: AnswerForm) -> HttpAnswer:
    """Return v2's answer: JSON, and the data of binary outputs behind it."""
    answer: dict[str, Any] = {"model_name": spec.name, "model_version": spec.version}
    if form.id is not None:
        answer["id"] = form.id
    chunks = []
    answer["outputs"] = outputs = []
    for tensor, is_binary in shown_outputs(spec, result, form):
        if is_binary:
            outputs.append(binary_output(tensor))
            chunks.append(tensor.data)
        else:
            outputs.append(json_output(tensor))
    answer["timings"] = timings_json(result.timings)
    head = json_answer(answer, headers=_headers(spec, result))
    if not chunks:
        return head
    length = (HEADER, str(len(head.body)))
    body = b"".join([head.body, *chunks])
    return HttpAnswer(200, (*head.headers, length), body, "application/octet-stream")


def _prediction(tensor: Tensor) -> Any:
    if tensor.datatype == "BF16":  # orjson does not know it
        return tensor.array().astype(np.float32)
    return v1_values(InferResult((tensor,)), "outputs")


def _headers(spec: ModelSpec, result: InferResult) -> Headers:
    timing = ("Server-Timing", server_timing(result.timings))
    if not spec.cached:
        return (timing,)
    return (timing, ("Ferry-Cache", "hit" if result.timings.cached else "miss"))


def _described(spec: ModelSpec, result: InferResult, form: AnswerForm) -> dict[str, Any]:
    rows = describe_rows(spec, result, form.top_k)
    for row, was_cut in zip(rows, form.cut or [False] * len(rows), strict=True):
        if was_cut:
            row["truncated"] = True
    return rows[0] if form.one else {"predictions": rows}
