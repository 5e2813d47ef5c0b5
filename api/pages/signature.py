"""A model's signature as the playground needs it: which form fits, and the shape of an example."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from api.payloads.json_arrays import BINARY_ONLY
from shared.model_spec import ModelSpec, TensorSpec
from shared.registry.snapshot import Snapshot

LARGEST_DRAWN = 64
"""Grey pictures of at most so many pixels a side are digits and letters: they can be drawn."""
SIZE_OF_ANY, SIDE_OF_ANY = 4, 32
"""The size of a dimension of -1 in an example: of a sequence, and of a picture's sides."""
PICTURE_DIMS = 3


def listed_models(snapshot: Snapshot) -> list[dict[str, Any]]:
    """Return all models by name, those that cannot be loaded among them: state and reason."""
    names = snapshot.models.keys() | snapshot.failures.keys()
    return [
        {"name": name, "ready": snapshot.is_ready(name), "reason": _reason(snapshot, name)}
        for name in sorted(names)
    ]


def signature(spec: ModelSpec, snapshot: Snapshot) -> dict[str, Any]:
    """Return a version's form and tensors, and whether it answers now."""
    return {
        "name": spec.name,
        "version": spec.version,
        "versions": sorted(snapshot.models.get(spec.name, {}), key=int),
        "platform": spec.platform,
        "max_batch_size": spec.max_batch_size,
        "batched": spec.batched,
        "ready": spec.key in snapshot.ready,
        "reason": snapshot.reasons.get(spec.key, "") or _reason(snapshot, spec.name),
        "form": _form(spec),
        "tokens": bool(spec.text),
        "picture": _picture(spec),
        "inputs": [_input(spec, tensor) for tensor in spec.inputs],
        "outputs": [_output(spec, tensor) for tensor in spec.outputs],
        "steps": [step.model for step in spec.steps],
    }


def example_shape(spec: ModelSpec, tensor: TensorSpec) -> list[int]:
    """Return a shape that fits the declared one, a batch of one row.

    Dimensions of -1 have the same size in all inputs, as those of tokens and their mask must.
    """
    of_any = SIDE_OF_ANY if len(tensor.dims) >= PICTURE_DIMS else SIZE_OF_ANY
    if tensor == spec.string_input:
        of_any = 1
    rows = [1] if spec.batched else []
    return rows + [of_any if size < 0 else size for size in tensor.dims]


def _form(spec: ModelSpec) -> str:
    """Return the form by the one kind of input that a request needs."""
    filled = {spec.image.input} if spec.image else set()
    if spec.text:
        filled = {tensor.name for tensor in spec.inputs}
    if spec.string_input:
        filled = {spec.string_input.name}
    is_whole = _required(spec.inputs) <= filled
    return spec.input_kind if is_whole else "tensor"


def _required(inputs: Iterable[TensorSpec]) -> set[str]:
    return {tensor.name for tensor in inputs if not tensor.optional}


def _picture(spec: ModelSpec) -> dict[str, Any] | None:
    image = spec.image
    if image is None:
        return None
    side = max(image.width, image.height)
    drawn = image.channels == "L" and side <= LARGEST_DRAWN
    return image.model_dump() | {"drawn": drawn}


def _input(spec: ModelSpec, tensor: TensorSpec) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "datatype": tensor.datatype,
        "declared": spec.full_shape(tensor),
        "shape": example_shape(spec, tensor),
        "optional": tensor.optional,
        "binary": tensor.datatype in BINARY_ONLY,
    }


def _output(spec: ModelSpec, tensor: TensorSpec) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "datatype": tensor.datatype,
        "declared": spec.full_shape(tensor),
        "labels": list(tensor.labels),
        "binary": tensor.datatype in BINARY_ONLY,
    }


def _reason(snapshot: Snapshot, name: str) -> str:
    return snapshot.failures.get(name) or snapshot.notes.get(name, "")
