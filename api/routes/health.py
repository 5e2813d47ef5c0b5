"""Tells whether the server is alive and ready (Open Inference Protocol v2)."""

from __future__ import annotations

from flask import Blueprint, Response, current_app

from api.routes.responses import json_response
from shared.registry.catalog import Catalog

blueprint = Blueprint("health", __name__)


@blueprint.get("/v2/health/live")
def live() -> Response:
    """Answer 200 while this process answers at all; looks at nothing else."""
    return json_response({"live": True})


@blueprint.get("/v2/health/ready")
def ready() -> Response:
    """Answer 200 when every model is served, else 400."""
    catalog: Catalog = current_app.extensions["catalog"]
    is_ready = catalog.all_ready()
    return json_response({"ready": is_ready}, 200 if is_ready else 400)
