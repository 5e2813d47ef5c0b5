"""/v2/logging: how much all processes log."""

from __future__ import annotations

from flask import Blueprint, Response, current_app

from api.payloads.v2_json import load_object
from api.routes.responses import json_response
from api.server.body import read_body
from shared.registry.log_settings import LogSettings

blueprint = Blueprint("log_settings", __name__)


@blueprint.get("/v2/logging")
def read() -> Response:
    """Answer all log settings."""
    return json_response(_settings().read())


@blueprint.post("/v2/logging")
def change() -> Response:
    """Set what the body names, leave the others, and answer all; 400 sets nothing."""
    return json_response(_settings().change(load_object(read_body())))


def _settings() -> LogSettings:
    settings: LogSettings = current_app.extensions["log_settings"]
    return settings
