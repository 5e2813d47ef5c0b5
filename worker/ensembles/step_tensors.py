"""Turns the outputs of one step into the inputs of the next, or says why they do not fit.

Nothing is computed here: names change, and the batch dimension comes or goes. A model's
inputs are looked up for every request: its version may have changed since the ensemble loaded.
"""

from __future__ import annotations

from collections.abc import Mapping

from shared.errors import BadModel, BadModelOutput, BadRequest, FerryError
from shared.messages import Tensor
from shared.model_spec import EnsembleStep, ModelSpec, TensorSpec

Tensors = Mapping[str, Tensor | None]
"""An ensemble's tensors by name; None for an optional input that the request does not have."""


def step_inputs(
    ensemble: ModelSpec, step: EnsembleStep, model: ModelSpec, tensors: Tensors
) -> tuple[Tensor, ...]:
    """Return the inputs for a step's model, in the order that it declares.

    Raises BadRequest when the client's own tensor does not fit the model, BadModelOutput when
    another step's does not, BadModel when the model has other inputs than the step names.
    """
    unknown = sorted(step.input_map.keys() - model.inputs_by_name.keys())
    if unknown:
        raise BadModel(f"'{model.name}' has no input {unknown[0]!r}")
    found = []
    for declared in model.inputs:
        name = step.input_map.get(declared.name, "")
        tensor = tensors.get(name)
        if tensor is not None:
            found.append(_fitted(tensor, declared, model, _error_of(ensemble, name)))
        elif not declared.optional:
            error = _error_of(ensemble, name) if name else BadModel
            raise error(f"input {declared.name!r} of '{model.name}' is not there")
    _check_rows(found, model)
    return tuple(found)


def check_asked(step: EnsembleStep, model: ModelSpec) -> None:
    """Raise BadModel when a step's model has not the outputs that the step names."""
    unknown = sorted(step.output_map.keys() - {tensor.name for tensor in model.outputs})
    if unknown:
        raise BadModel(f"'{model.name}' has no output {unknown[0]!r}")


def ensemble_outputs(
    ensemble: ModelSpec, wanted: tuple[str, ...], tensors: Tensors, rows: int
) -> tuple[Tensor, ...]:
    """Return an ensemble's answer, in the order wanted; raises BadModelOutput."""
    declared = {tensor.name: tensor for tensor in ensemble.outputs}
    found = []
    for name in wanted or declared:
        tensor = tensors[name]
        assert tensor is not None, "an output that is wanted was computed, this is a bug"
        found.append(_fitted(tensor, declared[name], ensemble, BadModelOutput))
        if ensemble.batched and found[-1].shape[0] != rows:
            raise BadModelOutput(
                f"output {name!r}: shape {list(tensor.shape)} does not have one row for each of "
                f"the {rows} rows that went in"
            )
    return tuple(found)


def _error_of(ensemble: ModelSpec, name: str) -> type[FerryError]:
    """Return the error of a tensor that does not fit: the client's own, or another step's."""
    return BadRequest if name in ensemble.inputs_by_name else BadModelOutput


def _fitted(
    tensor: Tensor, declared: TensorSpec, model: ModelSpec, error: type[FerryError]
) -> Tensor:
    """Return a tensor under the name and with the dimensions that `model` declares.

    As in Triton, one row is put around a tensor for a batched model, or taken off for another one.
    """
    if tensor.pixels:
        return _picture(tensor, declared, model)
    shape, wanted = tensor.shape, model.full_shape(declared)
    if model.batched and len(shape) == len(wanted) - 1:
        shape = (1, *shape)
    elif not model.batched and len(shape) == len(wanted) + 1 and shape[0] == 1:
        shape = shape[1:]
    if tensor.datatype != declared.datatype:
        raise error(
            f"tensor {tensor.name!r}: datatype {tensor.datatype}, {declared.name!r} of "
            f"'{model.name}' wants {declared.datatype}"
        )
    if shape[:1] == (0,) and len(shape) == len(wanted):  # of no rows a free dimension says nothing
        sizes = zip(shape[1:], wanted[1:], strict=True)
        shape = (0, *[size or max(0, want) for size, want in sizes])
    if len(shape) != len(wanted) or any(
        want not in (-1, got) for got, want in zip(shape, wanted, strict=True)
    ):
        raise error(
            f"tensor {tensor.name!r}: shape {list(tensor.shape)}, {declared.name!r} of "
            f"'{model.name}' wants {wanted}"
        )
    return tensor._replace(name=declared.name, shape=shape)


def _picture(tensor: Tensor, declared: TensorSpec, model: ModelSpec) -> Tensor:
    """Return uint8 pixels for a model that normalises such; raises BadModel for any other."""
    image = model.image
    if image is None or image.input != declared.name:
        raise BadModel(f"'{model.name}' takes no pictures as {declared.name!r}")
    wanted = (image.height, image.width, len(image.channels))
    if tensor.shape[1:] != wanted:
        raise BadModel(
            f"'{model.name}' takes pictures of {list(wanted)}, not of {list(tensor.shape[1:])}"
        )
    return tensor._replace(name=declared.name)


def _check_rows(inputs: list[Tensor], model: ModelSpec) -> None:
    if not model.batched or not inputs:
        return
    rows = {tensor.shape[0] for tensor in inputs}
    if len(rows) > 1:
        raise BadModelOutput(f"the inputs of '{model.name}' have different rows: {sorted(rows)}")
    if max(rows) > model.max_batch_size:
        raise BadModelOutput(
            f"'{model.name}' takes at most {model.max_batch_size} rows, not {max(rows)}"
        )
