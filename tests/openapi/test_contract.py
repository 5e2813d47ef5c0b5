"""Schemathesis asks a real server what /openapi.json says can be asked, and all it must refuse.

Schemathesis makes up requests, right ones and wrong ones, and checks that each answer has a status,
a type and a shape that the document promises, and that what is wrong was refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from ferry_processes import free_port, running_gunicorn, running_worker
from openapi_document import document
from schemathesis.pytest.lazy import get_all_tests
from schemathesis.specs.openapi.checks import allow_header_conformance, ignored_auth

from shared.settings import Settings

FAST_SAMPLES = ("tiny", "digits", "sentiment")
CONFIG = {
    "seed": 20261121,
    "generation": {"max-examples": 15, "deterministic": True, "database": "none"},
    "checks": {
        # Refused on purpose: the queue is full or the deadline over (503), not offered (501).
        "not_a_server_error": {"expected-statuses": ["2xx", "4xx", "501", "503"]},
        # The document says what a body looks like, the model says what fits.
        "positive_data_acceptance": {"enabled": False},
    },
    "phases": {"stateful": {"enabled": False}},
}


ROW = {"type": "array", "items": {"type": "number"}, "minItems": 16, "maxItems": 16}
ROWS = {"type": "array", "items": ROW, "minItems": 1, "maxItems": 4}
TENSOR = {
    "type": "object",
    "properties": {
        "name": {"const": "INPUT__0"},
        "datatype": {"const": "FP32"},
        "shape": {"const": [1, 16]},
        "data": ROW,
    },
    "required": ["name", "datatype", "shape", "data"],
}
FITTING = {
    "InferRequest": {"inputs": {"type": "array", "items": TENSOR, "minItems": 1, "maxItems": 1}},
    "TensorBody": {"input_tensor": ROWS},
    "V1Rows": {"instances": ROWS},
    "V1Columns": {"inputs": ROWS},
    "EmbeddingsBody": {"model": {"const": "sentiment"}, "input": {"type": "string"}},
}
"""Bodies that fit `tiny`, or `sentiment`, among the made-up ones."""
SERVED = {
    "name": [*FAST_SAMPLES, "nobody"],
    "version": ["1", "2"],
}


def narrowed() -> dict[str, Any]:
    """Return the document with what comes further than to "not found" and "does not fit"."""
    narrow = deepcopy(document())
    known = narrow["components"]
    for item in narrow["paths"].values():
        for operation in item.values():
            for parameter in operation["parameters"]:
                if parameter.get("name") in SERVED:
                    parameter["schema"] = {"enum": SERVED[parameter["name"]]}
    prefer = known["parameters"]["Prefer"]
    prefer["schema"] = {"anyOf": [{"const": "respond-async"}, prefer["schema"]]}
    for name, properties in FITTING.items():
        fitting = {"type": "object", "properties": properties, "required": list(properties)}
        known["schemas"][name] = {"anyOf": [known["schemas"][name], fitting]}
    return narrow


NARROWED = narrowed()
OPERATIONS = [
    f"{method.upper()} {path}" for path, item in NARROWED["paths"].items() for method in item
]


@pytest.fixture(scope="module")
def schema() -> schemathesis.BaseSchema:
    """What requests are made from; making them takes seconds, which no other lane shall spend."""
    config = schemathesis.Config.from_dict(CONFIG)
    return schemathesis.openapi.from_dict(NARROWED, config=config)


@pytest.fixture(scope="module")
def address(
    redis_url: str, sample_models: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The address of a server of its own: logging is set for all processes of one prefix."""
    repository = tmp_path_factory.mktemp("models")
    for name in FAST_SAMPLES:
        (repository / name).symlink_to(sample_models / name)
    settings = Settings(
        redis_url=redis_url, key_prefix="contract", models=str(repository), port=free_port()
    )
    with running_worker(settings), running_gunicorn(settings):
        yield f"http://127.0.0.1:{settings.port}"


def check(case: schemathesis.Case, address: str) -> None:
    # Version 1 puts its verbs behind the name, where they could be part of a name that is asked
    # for by GET: `Allow` says so.
    # And without keys everybody may ask: those are tested with keys.
    excluded = [ignored_auth, *([allow_header_conformance] if ":" in case.path else [])]
    case.call_and_validate(base_url=address, timeout=30, excluded_checks=excluded)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_answers_are_as_documented(
    schema: schemathesis.BaseSchema, operation: str, address: str
) -> None:
    tests = get_all_tests(
        schema=schema.include(name=operation), test_func=check, settings=None, given_kwargs=None
    )

    (found,) = tests
    found.ok()[1](address=address)
