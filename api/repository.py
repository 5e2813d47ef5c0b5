"""/v2/repository: which models there are; none is loaded or unloaded by request."""

from __future__ import annotations

from flask import Blueprint, Response, current_app

from api.body import read_body
from api.json_answers import json_response
from api.json_tensors import load_object
from api.repository_index import refuse_model_control, repository_index
from shared.catalog import Catalog
from shared.errors import BadRequest

blueprint = Blueprint("repository", __name__)


@blueprint.post("/v2/repository/index")
def index() -> Response:
    """Answer all models with their states; with `{"ready": true}` those that are served."""
    catalog: Catalog = current_app.extensions["catalog"]
    raw = read_body()
    ready_only = load_object(raw).get("ready", False) if raw else False
    if type(ready_only) is not bool:
        raise BadRequest(f'"ready" must be true or false, not {ready_only!r}')
    return json_response(repository_index(catalog.snapshot(), ready_only=ready_only))


@blueprint.post("/v2/repository/models/<name>/load")
@blueprint.post("/v2/repository/models/<name>/unload")
def control(name: str) -> Response:
    """Refuse with 400, whatever `name` is."""
    refuse_model_control()
