"""The v2 protocol beside its inference: health, descriptions, statistics, repository, settings.

Its parts that are not offered are refused with 501, for Triton's clients call those too.
"""

from __future__ import annotations

from flask import Blueprint, Response, request

from api.access.guard import KEY, may_know
from api.infer.descriptions import index_for, model_description, server_description
from api.infer.inference import checked_version
from api.infer.model_control import load_by_request, unload_by_request
from api.payloads.infer_request import SHARED_MEMORY, check_parameters
from api.payloads.v2_json import load_object
from api.routes.flask_side import json_response, services
from api.server.body import MAX_ORDER_BYTES, read_body
from shared.errors import BadRequest, Unsupported, shown
from shared.messages import Parameters
from shared.registry.repository_index import repository_index
from shared.registry.trace_settings import as_json, from_json

blueprint = Blueprint("v2", __name__)
METHODS = ["GET", "POST"]
"""Methods of the routes that are refused."""


@blueprint.get("/v2")
def server() -> Response:
    """Answer the server's name, version and extensions."""
    return json_response(server_description())


@blueprint.get("/v2/health/live")
def live() -> Response:
    """Answer 200 while this process answers at all; looks at nothing else."""
    return json_response({"live": True})


@blueprint.get("/v2/health/ready")
def ready() -> Response:
    """Answer 200 when the models are served that FERRY_READINESS wants, else 400 and why not."""
    readiness = services().readiness
    reason = readiness.why_not()
    # That Redis is away says nothing of what is inside, and who has a key cannot be known then.
    return _readiness({}, reason, is_public=readiness.pulse.is_lost)


@blueprint.get("/v2/models/<name>")
@blueprint.get("/v2/models/<name>/versions/<version>")
def model(name: str, version: str | None = None) -> Response:
    """Answer a model's inputs, outputs and versions; 404 for one that is not registered."""
    catalog = services().catalog
    spec = catalog.find(name, checked_version(version))
    return json_response(model_description(spec, catalog.served_versions(name)))


@blueprint.get("/v2/models/<name>/config")
@blueprint.get("/v2/models/<name>/versions/<version>/config")
def config(name: str, version: str | None = None) -> Response:
    """Answer a model's configuration; 404 for one that is not registered."""
    return json_response(services().catalog.find(name, checked_version(version)).config)


@blueprint.get("/v2/models/<name>/ready")
@blueprint.get("/v2/models/<name>/versions/<version>/ready")
def model_ready(name: str, version: str | None = None) -> Response:
    """Answer 200 when an instance serves the model, 400 when none does, 404 for an unknown one."""
    reason = services().readiness.why_model_not(name, checked_version(version))
    return _readiness({"name": name}, reason)


def _readiness(about: dict[str, object], reason: str, *, is_public: bool = False) -> Response:
    if reason:
        is_told = is_public or services().guard.sees_inside(request.environ)
        told = {"reason": reason} if is_told else {}
        return json_response(about | {"ready": False} | told, 400)
    return json_response(about | {"ready": True})


@blueprint.get("/v2/models/stats")
@blueprint.get("/v2/models/<name>/stats")
@blueprint.get("/v2/models/<name>/versions/<version>/stats")
def statistics(name: str | None = None, version: str | None = None) -> Response:
    """Answer the figures of every registered version, of a model's, or of one; 404 as metadata.

    They are read from Redis, so every API process answers the same.
    """
    key, found = (
        request.environ.get(KEY),
        services().catalog.versions(name, checked_version(version)),
    )
    specs = [spec for spec in found if may_know(key, spec.name)]
    return json_response({"model_stats": services().statistics(specs)})


@blueprint.post("/v2/repository/index")
def repository() -> Response:
    """Answer all models with their states; with `{"ready": true}` those that are served."""
    catalog = services().catalog
    raw = read_body(MAX_ORDER_BYTES)
    ready_only = load_object(raw).get("ready", False) if raw else False
    if type(ready_only) is not bool:
        raise BadRequest(f'"ready" must be true or false, not {shown(ready_only)}')
    catalog.refresh()
    entries = repository_index(catalog.snapshot(), ready_only=ready_only)
    return json_response(index_for(request.environ.get(KEY), entries))


@blueprint.post("/v2/repository/models/<name>/load")
def load(name: str) -> Response:
    """Answer 200 when the model is ready on every machine, 400 saying why it cannot be."""
    load_by_request(services().model_control, name, _parameters())
    return json_response({})


@blueprint.post("/v2/repository/models/<name>/unload")
def unload(name: str) -> Response:
    """Answer 200 when no request can reach the model any more."""
    unload_by_request(services().model_control, services().catalog, name, _parameters())
    return json_response({})


def _parameters() -> Parameters:
    raw = read_body(MAX_ORDER_BYTES)
    body = load_object(raw) if raw else {}
    return check_parameters(body.get("parameters"), "the request")


@blueprint.get("/v2/logging")
def log_settings() -> Response:
    """Answer all log settings, which hold for all processes."""
    return json_response(services().log_settings.read())


@blueprint.post("/v2/logging")
def change_log_settings() -> Response:
    """Set the log settings that the body names, and answer all; 400 sets nothing."""
    return json_response(services().log_settings.change(load_object(read_body(MAX_ORDER_BYTES))))


@blueprint.route("/v2/systemsharedmemory/<path:action>", methods=METHODS)
@blueprint.route("/v2/cudasharedmemory/<path:action>", methods=METHODS)
def shared_memory(action: str) -> Response:
    """Refuse: the API and the models may be on different machines."""
    raise Unsupported(SHARED_MEMORY)


@blueprint.get("/v2/trace/setting")
@blueprint.get("/v2/models/<name>/trace/setting")
def trace_settings(name: str | None = None) -> Response:
    """Answer the trace settings of all models, or of one; nothing is traced by them yet."""
    return json_response(as_json(services().trace_settings.read(name)))


@blueprint.post("/v2/trace/setting")
@blueprint.post("/v2/models/<name>/trace/setting")
def change_trace_settings(name: str | None = None) -> Response:
    """Set the trace settings that the body names, forget those that are null, and answer all."""
    wanted = from_json(load_object(read_body(MAX_ORDER_BYTES)))
    return json_response(as_json(services().trace_settings.change(name, wanted)))
