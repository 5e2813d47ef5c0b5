"""Descriptions of the server and of its models (v2's metadata), for HTTP and gRPC alike."""

from __future__ import annotations

from importlib.metadata import version as package_version
from typing import Any

from api.access.guard import is_admin, may_know
from shared.access.api_key import ApiKey
from shared.errors import LoadFailed
from shared.model_spec import ModelSpec, TensorSpec
from shared.registry.repository_index import UNLOADED

EXTENSIONS = [
    "binary_tensor_data",
    "classification",
    "model_repository",
    "model_configuration",
    "schedule_policy",
    "statistics",
    "trace",
    "logging",
]


def server_description() -> dict[str, Any]:
    """Return the server's name, version and extensions."""
    return {"name": "ferry", "version": package_version("ferry"), "extensions": EXTENSIONS}


def index_for(key: ApiKey | None, entries: list[dict[str, str]]) -> list[dict[str, str]]:
    """Return the part of a repository's index that who asks may see: reasons are for admins."""
    if is_admin(key):
        return entries
    return [entry | {"reason": _code(entry)} for entry in entries if may_know(key, entry["name"])]


def _code(entry: dict[str, str]) -> str:
    told = entry["state"] == "READY" or entry["reason"] in ("", UNLOADED)
    return entry["reason"] * (entry["reason"] == UNLOADED) if told else LoadFailed.code


def model_description(spec: ModelSpec, versions: list[str]) -> dict[str, Any]:
    """Return a model's inputs, outputs and the `versions` that are served."""
    return {
        "name": spec.name,
        "versions": versions,
        "platform": spec.platform,
        "inputs": [_tensor(spec, tensor) for tensor in spec.inputs],
        "outputs": [_tensor(spec, tensor) for tensor in spec.outputs],
    }


def _tensor(spec: ModelSpec, tensor: TensorSpec) -> dict[str, object]:
    return {
        "name": tensor.name,
        "datatype": tensor.datatype,
        "shape": spec.full_shape(tensor),
    }
