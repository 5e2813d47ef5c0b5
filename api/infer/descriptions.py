"""Descriptions of the server and of its models (v2's metadata), for HTTP and gRPC alike."""

from __future__ import annotations

from importlib.metadata import version as package_version
from typing import Any

from shared.model_spec import ModelSpec, TensorSpec

EXTENSIONS = [
    "binary_tensor_data",
    "classification",
    "model_repository",
    "model_configuration",
    "schedule_policy",
    "statistics",
    "logging",
]


def server_description() -> dict[str, Any]:
    """Return the server's name, version and extensions."""
    return {"name": "ferry", "version": package_version("ferry"), "extensions": EXTENSIONS}


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
