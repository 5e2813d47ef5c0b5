"""What is served: server, models, their configuration and readiness (v2 protocol)."""

from __future__ import annotations

from flask import Blueprint, Response, current_app

from api.infer.descriptions import model_description, server_description
from api.infer.inference import checked_version
from api.routes.responses import json_response
from shared.registry.catalog import Catalog

blueprint = Blueprint("metadata", __name__)


@blueprint.get("/")
@blueprint.get("/v2")
def server() -> Response:
    """Answer the server's name, version and extensions."""
    return json_response(server_description())


@blueprint.get("/v2/models/<name>")
@blueprint.get("/v2/models/<name>/versions/<version>")
def model(name: str, version: str | None = None) -> Response:
    """Answer a model's inputs, outputs and versions; 404 for one that is not registered."""
    spec = _catalog().find(name, checked_version(version))
    return json_response(model_description(spec, _catalog().served_versions(name)))


@blueprint.get("/v2/models/<name>/config")
@blueprint.get("/v2/models/<name>/versions/<version>/config")
def config(name: str, version: str | None = None) -> Response:
    """Answer a model's configuration; 404 for one that is not registered."""
    return json_response(_catalog().find(name, checked_version(version)).config)


@blueprint.get("/v2/models/<name>/ready")
@blueprint.get("/v2/models/<name>/versions/<version>/ready")
def model_ready(name: str, version: str | None = None) -> Response:
    """Answer 200 when an instance serves the model, 400 when none does, 404 for an unknown one."""
    is_ready = _catalog().is_ready(name, checked_version(version))
    return json_response({"name": name, "ready": is_ready}, 200 if is_ready else 400)


def _catalog() -> Catalog:
    catalog: Catalog = current_app.extensions["catalog"]
    return catalog
