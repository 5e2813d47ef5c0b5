"""Log settings as LogSettings has them: strings, numbers and booleans in messages of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tritonclient.grpc import service_pb2 as proto

from shared.errors import BadRequest


def changes_in(request: proto.LogSettingsRequest) -> dict[str, Any]:
    """Return what is to be set, as HTTP's body has it; raises BadRequest."""
    found = {}
    for name, value in request.settings.items():
        choice = value.WhichOneof("parameter_choice")
        if choice is None:
            raise BadRequest(f"log setting {name!r} has no value")
        found[name] = getattr(value, choice)
    return found


def log_settings_response(settings: Mapping[str, Any]) -> proto.LogSettingsResponse:
    """Return all settings."""
    response = proto.LogSettingsResponse()
    for name, value in settings.items():
        setting = response.settings[name]
        if isinstance(value, bool):
            setting.bool_param = value
        elif isinstance(value, int):
            setting.uint32_param = value
        else:
            setting.string_param = value
    return response
