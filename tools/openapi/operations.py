"""The views of v2 and `/predict`, described; their paths and methods come from the routes.

An operation is found by its endpoint and method. Its errors are the classes of shared/errors.py: a
status and its codes stand in the document because they stand here.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from shared import errors
from shared.errors import FerryError
from tools.openapi import predict_schemas as predicting
from tools.openapi import schemas
from tools.openapi.bodies import BYTES, FORM, JSON, PICTURE, Content

NO_BODY: Content = MappingProxyType({})


class Operation(NamedTuple):
    """The description of one view: its body, answers and errors.

    `body` and `answers` (by status) are by media type, any one of the types each; none: bytes.

    `parameters` are names out of PARAMETERS; `headers` those of the answer with status 200. One of
    OpenAI's (`openai`) has errors in its form, and the model's name in its body.
    """

    tag: str
    summary: str
    answers: Mapping[int, Content]
    errors: tuple[type[FerryError], ...] = ()
    body: Content = NO_BODY
    parameters: tuple[str, ...] = ()
    headers: tuple[str, ...] = ()
    description: str = ""
    body_required: bool = True
    openai: bool = False


def as_json(*types: Any) -> Content:
    """Return JSON of any of `types`."""
    return {JSON: types}


BODY_ERRORS = (
    errors.BadRequest,
    errors.PayloadTooLarge,
    errors.RequestTimeout,
    errors.UnsupportedEncoding,
)
KNOWN_MODEL = (errors.UnknownModel, errors.RedisUnavailable)
MODEL_ERRORS = (
    errors.FerryError,
    errors.ModelFailed,
    errors.BadModelOutput,
    errors.ModelCrashed,
    errors.BadMessage,
)
WAITING_ERRORS = (
    errors.ModelNotReady,
    errors.VersionRetired,
    errors.QueueFull,
    errors.RedisUnavailable,
    errors.RequestExpired,
    errors.BodyLost,
)
ASKING_ERRORS = (
    *BODY_ERRORS,
    errors.UnknownModel,
    errors.RequestGone,
    errors.IdempotencyConflict,
    *MODEL_ERRORS,
    *WAITING_ERRORS,
)
ASKING_PARAMETERS = ("X-Request-Timeout", "Prefer", "Idempotency-Key")
ASKING = (
    "With `Prefer: respond-async` the answer is 202 and stands at the `Location` later. The same "
    "`Idempotency-Key` with the same request has the same answer for an hour."
)
PREDICTED = as_json(
    predicting.PredictionAnswer, predicting.PredictionsAnswer, predicting.TensorAnswer
)
INFERRED = {JSON: (schemas.InferAnswer,), BYTES: ()}

PROTOCOL_VIEWS: Mapping[tuple[str, str], Operation] = {
    ("pages.root", "GET"): Operation(
        "server",
        "As /v2, and that the server is alive",
        {200: as_json(schemas.AliveServer)},
    ),
    ("v2.server", "GET"): Operation(
        "server", "The server's name, version and extensions", {200: as_json(schemas.Server)}
    ),
    ("v2.live", "GET"): Operation(
        "server", "Whether the process answers", {200: as_json(schemas.Live)}
    ),
    ("v2.ready", "GET"): Operation(
        "server",
        "Whether every model is served",
        {200: as_json(schemas.Ready), 400: as_json(schemas.Ready)},
    ),
    ("openapi.document", "GET"): Operation(
        "server", "This document", {200: {JSON: (dict,)}}
    ),
    ("v2.model", "GET"): Operation(
        "models",
        "A model's inputs and outputs",
        {200: as_json(schemas.ModelMetadata)},
        KNOWN_MODEL,
    ),
    ("v2.config", "GET"): Operation(
        "models",
        "A model's configuration, with the field names of config.pbtxt",
        {200: as_json(schemas.ModelConfig)},
        KNOWN_MODEL,
    ),
    ("v2.model_ready", "GET"): Operation(
        "models",
        "Whether a model is served",
        {200: as_json(schemas.ModelReady), 400: as_json(schemas.ModelReady)},
        KNOWN_MODEL,
    ),
    ("inference.infer", "POST"): Operation(
        "inference",
        "Tensors in, tensors out",
        {200: INFERRED, 202: as_json(predicting.Accepted)},
        ASKING_ERRORS,
        {JSON: (schemas.InferRequest,), BYTES: ()},
        ("Inference-Header-Content-Length", *ASKING_PARAMETERS),
        ("Server-Timing", "Ferry-Cache", "Inference-Header-Content-Length"),
        "The Open Inference Protocol, version 2. Binary tensor data stands behind the JSON, whose "
        f"length `Inference-Header-Content-Length` states. {ASKING}",
    ),
    ("predict.predict", "POST"): Operation(
        "inference",
        "A picture, a text or numbers in, a described answer out",
        {200: PREDICTED, 202: as_json(predicting.Accepted)},
        ASKING_ERRORS,
        {
            JSON: (predicting.TextBody, predicting.TensorBody),
            FORM: (predicting.PictureForm,),
            PICTURE: (),
        },
        ("top_k", *ASKING_PARAMETERS),
        ("Server-Timing", "Ferry-Cache"),
        f"Without a model's name, by the one model that takes this kind of input. {ASKING}",
    ),
    ("requests.respond", "GET"): Operation(
        "requests",
        "What became of a request that was accepted with 202",
        {200: {JSON: (schemas.InferAnswer, *PREDICTED[JSON]), BYTES: ()},
         202: as_json(predicting.Accepted)},
        (
            errors.BadRequest,
            errors.UnknownRequest,
            errors.RequestGone,
            errors.RedisUnavailable,
            *MODEL_ERRORS,
        ),
        parameters=("wait",),
        headers=("Server-Timing", "Ferry-Cache", "Inference-Header-Content-Length"),
        description="The answer, or the error, that the route itself would have given.",
    ),
    ("requests.cancel", "DELETE"): Operation(
        "requests",
        "Takes back a request that does not run yet",
        {200: as_json(predicting.Cancelled)},
        (
            errors.UnknownRequest,
            errors.RequestStarted,
            errors.RequestGone,
            errors.RedisUnavailable,
        ),
    ),
}  # fmt: skip
