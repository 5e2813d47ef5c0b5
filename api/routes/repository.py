"""/v2/repository: which models there are, and in mode explicit loading and unloading them."""

from __future__ import annotations

from flask import Blueprint, Response, current_app

from api.infer.model_control import load_by_request, unload_by_request
from api.payloads.infer_request import check_parameters
from api.payloads.v2_json import load_object
from api.routes.responses import json_response
from api.server.body import read_body
from shared.errors import BadRequest
from shared.messages import Parameters
from shared.operations.model_control import ModelControl
from shared.registry.catalog import Catalog
from shared.registry.repository_index import repository_index

blueprint = Blueprint("repository", __name__)


@blueprint.post("/v2/repository/index")
def index() -> Response:
    """Answer all models with their states; with `{"ready": true}` those that are served."""
    catalog: Catalog = current_app.extensions["catalog"]
    raw = read_body()
    ready_only = load_object(raw).get("ready", False) if raw else False
    if type(ready_only) is not bool:
        raise BadRequest(f'"ready" must be true or false, not {ready_only!r}')
    catalog.refresh()
    return json_response(repository_index(catalog.snapshot(), ready_only=ready_only))


@blueprint.post("/v2/repository/models/<name>/load")
def load(name: str) -> Response:
    """Answer 200 when the model is ready on every machine, 400 saying why it cannot be."""
    load_by_request(_control(), name, _parameters())
    return json_response({})


@blueprint.post("/v2/repository/models/<name>/unload")
def unload(name: str) -> Response:
    """Answer 200 when no request can reach the model any more."""
    unload_by_request(_control(), _catalog(), name, _parameters())
    return json_response({})


def _parameters() -> Parameters:
    raw = read_body()
    body = load_object(raw) if raw else {}
    return check_parameters(body.get("parameters"), "the request")


def _control() -> ModelControl:
    control: ModelControl = current_app.extensions["model_control"]
    return control


def _catalog() -> Catalog:
    catalog: Catalog = current_app.extensions["catalog"]
    return catalog
