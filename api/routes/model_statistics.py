"""What each model's requests cost so far (statistics extension of the Open Inference Protocol)."""

from __future__ import annotations

from flask import Blueprint, Response, current_app

from api.infer.inference import checked_version
from api.routes.responses import json_response
from shared.registry.catalog import Catalog

blueprint = Blueprint("model_statistics", __name__)


@blueprint.get("/v2/models/stats")
@blueprint.get("/v2/models/<name>/stats")
@blueprint.get("/v2/models/<name>/versions/<version>/stats")
def statistics(name: str | None = None, version: str | None = None) -> Response:
    """Answer the figures of every registered version, of a model's, or of one; 404 as metadata.

    They are read from Redis, so every API process answers the same.
    """
    catalog: Catalog = current_app.extensions["catalog"]
    specs = catalog.versions(name, checked_version(version))
    return json_response({"model_stats": current_app.extensions["statistics"](specs)})
