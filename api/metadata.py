"""What is served: server and model metadata, model readiness (Open Inference Protocol v2)."""

from __future__ import annotations

from importlib.metadata import version as package_version

from flask import Blueprint, Response, current_app

from api.catalog import Catalog
from api.json_answers import json_response
from shared.errors import UnknownModel
from shared.model_spec import ModelSpec, TensorSpec

blueprint = Blueprint("metadata", __name__)
EXTENSIONS: list[str] = []


@blueprint.get("/")
@blueprint.get("/v2")
def server() -> Response:
    """Answer the server's name, version and extensions."""
    return json_response(
        {"name": "ferry", "version": package_version("ferry"), "extensions": EXTENSIONS}
    )


@blueprint.get("/v2/models/<name>")
@blueprint.get("/v2/models/<name>/versions/<version>")
def model(name: str, version: str | None = None) -> Response:
    """Answer a model's inputs, outputs and versions; 404 for one that is not registered."""
    spec = _catalog().find(name, checked_version(version))
    return json_response(
        {
            "name": spec.name,
            "versions": list(spec.versions),
            "platform": spec.platform,
            "inputs": [_tensor(spec, tensor) for tensor in spec.inputs],
            "outputs": [_tensor(spec, tensor) for tensor in spec.outputs],
        }
    )


@blueprint.get("/v2/models/<name>/ready")
@blueprint.get("/v2/models/<name>/versions/<version>/ready")
def model_ready(name: str, version: str | None = None) -> Response:
    """Answer 200 when an instance serves the model, 400 when none does, 404 for an unknown one."""
    is_ready = _catalog().is_ready(name, checked_version(version))
    return json_response({"name": name, "ready": is_ready}, 200 if is_ready else 400)


def checked_version(version: str | None) -> str | None:
    """Return a version as it is named in a URL; anything but digits is unknown.

    Raises UnknownModel.
    """
    if version is not None and not (version.isascii() and version.isdigit()):
        raise UnknownModel(f"version {version!r} is not found: a version is a number")
    return version


def _tensor(spec: ModelSpec, tensor: TensorSpec) -> dict[str, object]:
    return {
        "name": tensor.name,
        "datatype": tensor.datatype,
        "shape": spec.full_shape(tensor),
    }


def _catalog() -> Catalog:
    catalog: Catalog = current_app.extensions["catalog"]
    return catalog
