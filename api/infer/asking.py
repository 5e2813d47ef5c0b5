"""Asks a checked question: now, later (`Prefer: respond-async`), or once (`Idempotency-Key`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from flask import Response, current_app, request

from api.infer.options import RequestOptions
from api.infer.render import render
from shared.messages import AnswerForm, Tensor
from shared.model_spec import ModelSpec

if TYPE_CHECKING:
    from api.infer.later import Later
    from api.infer.queues import Queues

PREFER, IDEMPOTENCY_KEY = "Prefer", "Idempotency-Key"


class Question(NamedTuple):
    """One request that fits its model, and how its answer is to be written."""

    spec: ModelSpec
    inputs: tuple[Tensor, ...]
    outputs: tuple[str, ...]
    options: RequestOptions
    how: AnswerForm
    named: bool = False
    """Whether it is for this version and no other."""


def respond(question: Question) -> Response:
    """Answer as the request's headers want it; raises FerryError."""
    later: Later = current_app.extensions["later"]
    key = request.headers.get(IDEMPOTENCY_KEY)
    wants_async = "respond-async" in _preferences(request.headers.get(PREFER, ""))
    if key is not None:
        return later.once(key, request.path, question, wait=not wants_async)
    if wants_async:
        return later.accept(question)
    queues: Queues = current_app.extensions["queues"]
    spec, inputs, outputs, options, how, named = question
    answered = queues.ask(spec, inputs, outputs, options, named=named)
    return render(answered.spec, answered.result, how).response()


def _preferences(header: str) -> set[str]:
    """Return the preferences of a header as RFC 7240 has it, without their parameters."""
    return {item.partition(";")[0].strip().lower() for item in header.split(",")}
