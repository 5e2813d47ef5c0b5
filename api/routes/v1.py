"""Version 1 of the inference protocol, as KServe and TensorFlow Serving speak it.

Sources: https://kserve.github.io/website/docs/concepts/architecture/data-plane/v1-protocol and
https://github.com/tensorflow/serving/blob/master/tensorflow_serving/g3doc/api_rest.md
"""

from __future__ import annotations

from flask import Blueprint, Response, request

from api.access.guard import KEY, may_know
from api.infer.inference import checked_version
from api.infer.options import options_of
from api.infer.question import Question
from api.routes.flask_side import json_response, response_of, services
from api.server.body import read_body
from shared.errors import ModelNotReady, UnknownRoute, Unsupported
from shared.messages import AnswerForm

blueprint = Blueprint("v1", __name__)
OTHER_VERBS = {"classify", "regress", "explain"}


@blueprint.get("/v1/models")
def models() -> Response:
    """Answer the names of all registered models, for KServe's clients and for OpenAI's."""
    key, found = request.environ.get(KEY), services().catalog.snapshot().models
    names = sorted(name for name in found if may_know(key, name))
    return json_response({"models": names, "object": "list", "data": list(map(_listed, names))})


def _listed(name: str) -> dict[str, object]:
    """Return a model as OpenAI's clients know one; since when there is one nobody writes down."""
    return {"id": name, "object": "model", "created": 0, "owned_by": "ferry"}


@blueprint.get("/v1/models/<name>")
def model(name: str) -> Response:
    """Answer 200 when an instance serves the model; raises ModelNotReady (503), as KServe does.

    OpenAI's clients read the other fields.
    """
    catalog = services().catalog
    if not catalog.is_ready(name):
        catalog.serving(name)  # raises the reason, if there is more to say than the next line
        raise ModelNotReady(f"model '{name}' is not ready")
    return json_response({"name": name, "ready": True, **_listed(name)})


@blueprint.get("/v1/models/<name>/versions/<version>")
def model_version(name: str, version: str) -> Response:
    """Answer the state of one version, in TensorFlow Serving's words."""
    is_ready = services().catalog.is_ready(name, checked_version(version))
    state = {
        "version": version,
        "state": "AVAILABLE" if is_ready else "LOADING",
        "status": {"error_code": "OK", "error_message": ""},
    }
    return json_response({"model_version_status": [state]})


@blueprint.post("/v1/models/<name>:predict")
@blueprint.post("/v1/models/<name>/versions/<version>:predict")
def predict(name: str, version: str | None = None) -> Response:
    """Answer `instances` (rows) with `predictions`, or `inputs` (columns) with `outputs`.

    Next stop: `Inference.respond`.
    """
    raw = read_body(services().settings.max_json_bytes)
    return services().catalog.by_current(lambda: _predict(raw, name, version))


def _predict(raw: bytes, name: str, version: str | None) -> Response:
    spec = services().catalog.serving(name, checked_version(version))
    kind, inputs = services().readers.predict(raw, spec, services().tokenizers)
    options = options_of(request.environ, {})
    question = Question(spec, inputs, (), options, AnswerForm(kind), version is not None, (raw,))
    return response_of(services().inference.respond(question, request.environ))


@blueprint.post("/v1/models/<name>:<verb>")
@blueprint.post("/v1/models/<name>/versions/<version>:<verb>")
def other(name: str, verb: str, version: str | None = None) -> Response:
    """Refuse the protocol's other verbs with Unsupported (501), all else with UnknownRoute."""
    if verb in OTHER_VERBS:
        raise Unsupported(f":{verb} is not offered, ask '{name}' by :predict")
    raise UnknownRoute(f"no route {request.path}")
