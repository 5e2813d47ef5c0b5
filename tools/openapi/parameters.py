"""The parameters and headers that /openapi.json describes, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from api.infer.async_answers import LONGEST_KEY
from api.payloads.binary_tensors import HEADER
from api.routes.predict import DEFAULT_TOP_K
from api.routes.requests import LONGEST_WAIT_SECONDS
from shared.jobs.store import MAX_LISTED_JOBS
from shared.model_spec import MAX_TOP_K

PATH_PARAMETERS: Mapping[str, dict[str, Any]] = {
    "name": {"description": "the model", "schema": {"type": "string"}},
    "version": {
        "description": "a version that is served",
        "schema": {"type": "string", "pattern": "^[0-9]+$"},
    },
    "job_id": {
        "description": "the `id` of the answer 202",
        "schema": {"type": "string", "pattern": "^[0-9a-f]{32}$"},
    },
    "request_id": {
        "description": "the `id` of the answer 202",
        "schema": {"type": "string", "pattern": "^[0-9a-f]{32}$"},
    },
}
PARAMETERS: Mapping[str, dict[str, Any]] = {
    "top_k": {
        "in": "query",
        "description": "how many classes `top_k` lists",
        "schema": {
            "type": "integer",
            "minimum": 1,
            "maximum": MAX_TOP_K,
            "default": DEFAULT_TOP_K,
        },
    },
    "limit": {
        "in": "query",
        "description": "how many jobs at most",
        "schema": {"type": "integer", "minimum": 1, "maximum": MAX_LISTED_JOBS, "default": 100},
    },
    "wait": {
        "in": "query",
        "description": "how many seconds to wait for the answer",
        "schema": {"type": "number", "minimum": 0, "maximum": LONGEST_WAIT_SECONDS, "default": 0},
    },
    "X-Request-Timeout": {
        "in": "header",
        "description": "how many seconds the request may wait",
        "schema": {"type": "number", "exclusiveMinimum": 0},
    },
    "Prefer": {
        "in": "header",
        "description": "`respond-async`: answer at once with 202",
        "schema": {"type": "string"},
    },
    "Idempotency-Key": {
        "in": "header",
        "description": "the same key, the same answer",
        "schema": {"type": "string", "minLength": 1, "maxLength": LONGEST_KEY},
    },
    HEADER: {
        "in": "header",
        "description": "how many bytes of the body are JSON, the rest is tensor data; 0: all of "
        "it is the data of the one input",
        "schema": {"type": "integer", "minimum": 0},
    },
}
HEADERS: Mapping[str, dict[str, Any]] = {
    "Server-Timing": {
        "description": "the timings, in milliseconds",
        "schema": {"type": "string"},
    },
    "Ferry-Cache": {
        "description": "of a model with a response cache: was the answer computed for another",
        "schema": {"type": "string", "enum": ["hit", "miss"]},
    },
    "Location": {"description": "the path of the answer", "schema": {"type": "string"}},
    "Retry-After": {
        "description": "when to come again, in seconds",
        "schema": {"type": "integer", "minimum": 1},
    },
    HEADER: {
        "description": "how many bytes of the body are JSON, when it has binary outputs",
        "schema": {"type": "integer", "minimum": 0},
    },
}
