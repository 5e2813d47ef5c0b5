"""Describes every route of the application as OpenAPI 3.1.

Paths, methods and path parameters are the application's own routes; errors are those of
shared/errors.py; examples were recorded from the sample models. The document only describes: the
routes check what comes in by themselves.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from apispec import APISpec
from flask import Flask
from werkzeug.routing import Rule

from api.access.browsers import READING
from api.app import create_app
from api.infer.public_errors import OPENAI_CODES
from api.routes.door import OPEN, role_of
from shared.errors import (
    FerryError,
    Forbidden,
    ForeignPage,
    RateLimited,
    Unauthorized,
    UnknownHost,
    UnknownModel,
)
from shared.settings import Settings
from tools.openapi.bodies import JSON, Bodies
from tools.openapi.examples import Example, examples
from tools.openapi.extensions import EXTENSION_VIEWS
from tools.openapi.jobs import JOB_VIEWS, JOBS_OF_MODELS
from tools.openapi.operations import PROTOCOL_VIEWS, Operation
from tools.openapi.parameters import HEADERS, PARAMETERS, PATH_PARAMETERS

OPERATIONS = {**PROTOCOL_VIEWS, **EXTENSION_VIEWS, **JOB_VIEWS}
UNKNOWN = Operation("other", "Not described yet", {200: {JSON: (dict,)}})
PAGES = {
    "static", "swagger_ui.show", "pages.static", "pages.model", "pages.tokens", "pages.burst",
    "ops.operations", "ops.stream", "ops.dead", "ops.action", "ops.disagreements",
}  # fmt: skip
"""Endpoints for people, not for programs."""
SECURITY = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "Authorization: Bearer <key>"},
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}
"""Either is enough, and neither is wanted where the server has no keys."""
ASKING = frozenset({"inference.infer", "predict.predict", "v1.predict", "embeddings.embed"})
"""Endpoints whose requests count towards a key's rate."""
VARIABLE = re.compile(r"<(?:[^:<>]+:)?([^<>]+)>")
DESCRIPTION = """\
Ferry collects the requests of many clients into batches and gives each its own answer.

Every error is `{"error", "code"}`, but at `/v1/embeddings`. Besides what stands at each route: a
path that does not exist is answered with 404 `unknown_route`, a method that its route does not
have with 405 `method_not_allowed` and `Allow`, and what nobody foresaw with 500 `internal`. Every
GET route answers HEAD. No `Content-Type` is needed but for forms. Bodies may come with the
`Content-Encoding` gzip or deflate, and answers go out so for who accepts it.

Where the server has API keys, each route wants one of the role in its `x-role`, or of an admin;
those without a role are open.
"""


def text() -> str:
    """Return the content of api/openapi/openapi.json."""
    app = create_app(Settings(redis_url="redis://nowhere.invalid"))  # opens no connection
    return json.dumps(describe(app), indent=1, ensure_ascii=False) + "\n"


def describe(app: Flask) -> dict[str, Any]:
    """Return the document of `app`; of a route that OPERATIONS lacks it says only that it is.

    Its version is for the API to fill in, which knows what is installed.
    """
    spec = APISpec("Ferry", "", "3.1.0", info={"description": DESCRIPTION})
    for tag in dict.fromkeys(operation.tag for operation in OPERATIONS.values()):
        spec.tag({"name": tag})
    for name, parameter in PARAMETERS.items():
        spec.components.parameter(name, parameter["in"], dict(parameter))
    for name, header in HEADERS.items():
        spec.components.header(name, dict(header))
    routes = [
        (rule, method, _behind_the_door(rule.endpoint, method))
        for rule, method in described_routes(app)
    ]
    for name, scheme in SECURITY.items():
        spec.components.security_scheme(name, dict(scheme))
    bodies = Bodies.of(
        [
            content
            for _, _, operation in routes
            for content in (operation.body, *operation.answers.values())
        ]
    )
    for name, schema in bodies.components.items():
        spec.components.schema(name, schema)
    for rule, method, operation in routes:
        path = VARIABLE.sub(r"{\1}", rule.rule)
        shown = {name: item for name, item in examples().items() if item.of(method, path)}
        described = _described(operation, rule, bodies, shown)
        described["operationId"] = "_".join([method.lower(), *re.findall(r"\w+", path)])
        spec.path(path, operations={method.lower(): described})
    return spec.to_dict()


def described_routes(app: Flask) -> Iterator[tuple[Rule, str]]:
    """Yield each rule with each of its methods, but for the pages."""
    for rule in sorted(app.url_map.iter_rules(), key=lambda rule: rule.rule):
        if rule.endpoint not in PAGES:
            for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"}):
                yield rule, method


def _described(
    operation: Operation, rule: Rule, bodies: Bodies, shown: dict[str, Example]
) -> dict[str, Any]:
    described: dict[str, Any] = {
        "tags": [operation.tag],
        "summary": operation.summary,
        "parameters": [
            *[_path_parameter(name, shown) for name in sorted(rule.arguments)],
            *operation.parameters,
        ],
        "responses": dict(_responses(operation, rule, bodies, shown)),
    }
    if operation.description:
        described["description"] = operation.description
    described["security"] = [] if rule.endpoint in OPEN else [{name: []} for name in SECURITY]
    if rule.endpoint not in OPEN:
        described["x-role"] = role_of(rule.endpoint)
    if operation.body:
        content = bodies.content(operation.body)
        described["requestBody"] = {"required": operation.body_required, "content": content}
        for name, example in shown.items():
            content[example.media_type].setdefault("examples", {})[name] = example.request()
    return described


def _behind_the_door(endpoint: str, method: str) -> Operation:
    """Return what an endpoint does, with the errors that stand before every route."""
    operation = OPERATIONS.get((endpoint, method), UNKNOWN)
    before: list[type[FerryError]] = [UnknownHost]
    if method not in READING:
        before.append(ForeignPage)
    if endpoint not in OPEN:
        before += [Unauthorized, Forbidden]
    if method == "POST" and endpoint in ASKING:
        before.append(RateLimited)
    return operation._replace(errors=(*operation.errors, *before))


def _path_parameter(name: str, shown: dict[str, Example]) -> dict[str, Any]:
    known = PATH_PARAMETERS.get(name, {"schema": {"type": "string"}})
    values = {key: {"value": item.parameters[name]} for key, item in shown.items()}
    return {"name": name, "in": "path", **known} | ({"examples": values} if values else {})


def _responses(
    operation: Operation, rule: Rule, bodies: Bodies, shown: dict[str, Example]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield a response for each status: an answer, some errors, or both."""
    errors = [error for error in operation.errors if operation.openai or _can_have(rule, error)]
    for status in sorted({*operation.answers, *[error.status for error in errors]}):
        failures = sorted({e for e in errors if e.status == status}, key=lambda error: error.code)
        content = bodies.content(operation.answers.get(status, {}))
        response: dict[str, Any] = {"description": operation.summary, "content": content}
        headers = {200: operation.headers, 202: ("Location",)}.get(status, ())
        if failures:
            response["description"] = "\n\n".join(map(_said, failures))
            failure = _openai_failure(failures) if operation.openai else _failure(failures)
            content[JSON] = {"schema": _either(failure, content)}
            if any(error.retry_after_seconds for error in failures):
                headers = ("Retry-After",)
        if headers:
            response["headers"] = {name: name for name in headers}
        for name, example in shown.items():
            if example.status == status:
                answered = content[JSON].setdefault("examples", {})
                answered[name] = {"summary": example.summary, "value": example.answer}
        yield str(status), response


def _can_have(rule: Rule, error: type[FerryError]) -> bool:
    """Tell whether a route can end with an error; one that names no model names no unknown one."""
    names_one = "name" in rule.arguments or rule.endpoint in JOBS_OF_MODELS
    return error is not UnknownModel or names_one


def _said(error: type[FerryError]) -> str:
    return f"`{error.code}`: {(error.__doc__ or '').splitlines()[0]}"


def _failure(errors: list[type[FerryError]]) -> dict[str, Any]:
    """Return the schema of these errors."""
    codes = {"enum": [error.code for error in errors]}
    return _closed({"error": {"type": "string"}, "code": codes})


def _openai_failure(errors: list[type[FerryError]]) -> dict[str, Any]:
    """Return the schema of these errors in OpenAI's form."""
    codes = [OPENAI_CODES.get(error, error.code) for error in errors]
    said = {
        "message": {"type": "string"},
        "type": {"enum": ["invalid_request_error", "server_error"]},
        "param": {"type": ["string", "null"]},
        "code": {"enum": codes},
    }
    return _closed({"error": _closed(said)})


def _closed(properties: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of an object of these properties and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _either(failure: dict[str, Any], content: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a failure, or of what else has its status."""
    return {"anyOf": [content[JSON]["schema"], failure]} if JSON in content else failure
