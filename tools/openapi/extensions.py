"""The views of the protocol's extensions and of version 1, described."""

from __future__ import annotations

from collections.abc import Mapping

from shared import errors
from tools.openapi import extension_schemas as schemas
from tools.openapi.operations import (
    ASKING,
    ASKING_ERRORS,
    ASKING_PARAMETERS,
    BODY_ERRORS,
    KNOWN_MODEL,
    Operation,
    as_json,
)
from tools.openapi.predict_schemas import Accepted

CONTROL_ERRORS = (
    *BODY_ERRORS, errors.LoadFailed, errors.ModelNotReady, errors.RedisUnavailable
)  # fmt: skip
LOGGED = {200: as_json(schemas.LogSettings)}
OTHER_VERB = Operation(
    "version 1", "The verbs that are not offered", {}, (errors.Unsupported, errors.UnknownRoute)
)
NO_SHARED_MEMORY = Operation("extensions", "Not offered: shared memory", {}, (errors.Unsupported,))
TRACED = {200: as_json(schemas.TraceSettings)}

EXTENSION_VIEWS: Mapping[tuple[str, str], Operation] = {
    ("v2.repository", "POST"): Operation(
        "extensions",
        "All models with their states",
        {200: as_json(list[schemas.IndexEntry])},
        (*BODY_ERRORS, errors.RedisUnavailable),
        as_json(schemas.IndexBody),
        body_required=False,
    ),
    ("v2.load", "POST"): Operation(
        "extensions",
        "Loads a model, or what changed of it; answers when it is ready on every machine",
        {200: as_json(schemas.Nothing)},
        CONTROL_ERRORS,
        as_json(schemas.LoadBody),
        body_required=False,
    ),
    ("v2.unload", "POST"): Operation(
        "extensions",
        "Unloads a model; answers when no request can reach it",
        {200: as_json(schemas.Nothing)},
        CONTROL_ERRORS,
        as_json(schemas.UnloadBody),
        body_required=False,
    ),
    ("v2.statistics", "GET"): Operation(
        "extensions",
        "What the requests of each model version cost so far, in all processes",
        {200: as_json(schemas.Statistics)},
        KNOWN_MODEL,
    ),
    ("reports.report", "GET"): Operation(
        "extensions",
        "How a version was made fast: the page that ferry optimise wrote",
        {200: {"text/html": (str,)}},
        KNOWN_MODEL,
    ),
    ("metrics.metrics", "GET"): Operation(
        "server",
        "Figures of every model version, queue and GPU, for Prometheus",
        {200: {"text/plain": (str,)}},
        (errors.RedisUnavailable,),
    ),
    ("v2.log_settings", "GET"): Operation(
        "extensions", "How much is logged", LOGGED, (errors.RedisUnavailable,)
    ),
    ("v2.change_log_settings", "POST"): Operation(
        "extensions",
        "Sets how much is logged, by all processes",
        LOGGED,
        (*BODY_ERRORS, errors.RedisUnavailable),
        as_json(schemas.ChangeLogging),
    ),
    **{("v2.shared_memory", method): NO_SHARED_MEMORY for method in ("GET", "POST")},
    ("v2.trace_settings", "GET"): Operation(
        "extensions", "The trace settings, which act on nothing yet", TRACED, KNOWN_MODEL
    ),
    ("v2.change_trace_settings", "POST"): Operation(
        "extensions",
        "Sets trace settings, for all processes",
        TRACED,
        (*BODY_ERRORS, *KNOWN_MODEL, errors.Unsupported),
        as_json(schemas.ChangeTraces),
    ),
    ("embeddings.embed", "POST"): Operation(
        "inference",
        "Texts in, vectors out, as OpenAI's clients ask for them",
        {200: as_json(schemas.EmbeddingList)},
        tuple(error for error in ASKING_ERRORS if error is not errors.RequestGone),
        as_json(schemas.EmbeddingsBody),
        ("X-Request-Timeout", "Idempotency-Key"),
        description="Of 2048 texts at most, by any model of texts with one FP32 vector for each.",
        openai=True,
    ),
    ("v1.models", "GET"): Operation(
        "version 1",
        "The names of all models, for KServe's clients and OpenAI's",
        {200: as_json(schemas.V1Models)},
        (errors.RedisUnavailable,),
    ),
    ("v1.model", "GET"): Operation(
        "version 1",
        "Whether a model is served",
        {200: as_json(schemas.V1Ready)},
        (*KNOWN_MODEL, errors.ModelNotReady),
    ),
    ("v1.model_version", "GET"): Operation(
        "version 1",
        "The state of one version",
        {200: as_json(schemas.V1VersionStatus)},
        KNOWN_MODEL,
    ),
    ("v1.predict", "POST"): Operation(
        "version 1",
        "Rows in, predictions out; or columns in, outputs out",
        {
            200: as_json(schemas.V1Predictions, schemas.V1Outputs),
            202: as_json(Accepted),
        },
        ASKING_ERRORS,
        as_json(schemas.V1Rows, schemas.V1Columns),
        ASKING_PARAMETERS,
        ("Server-Timing", "Ferry-Cache"),
        ASKING,
    ),
    ("v1.other", "POST"): OTHER_VERB,
}
