"""The masks of ragged inputs: which rows were padded, told to the model by an input of its own.

    parameters { key: "ragged_mask:<input>" value { string_value: "<the mask's input>" } }

The mask is declared like any other input, but no client sends it: it is 1 where the input's rows
have a value of their own and 0 where they were padded to the longest of the batch.
"""

from __future__ import annotations

from shared.model_spec import MaskInput, TensorSpec

KEY = "ragged_mask:"
Inputs = tuple[TensorSpec, ...]


def take_masks(inputs: Inputs, parameters: dict[str, str]) -> tuple[Inputs, tuple[MaskInput, ...]]:
    """Return the inputs that clients send, and the masks; raises ValueError naming the parameter.

    Masks know their place among all inputs, which TorchScript may match by their order.
    """
    by_name = {tensor.name: tensor for tensor in inputs}
    masks = []
    for key in sorted(parameters):
        if not key.startswith(KEY):
            continue
        of, name = key.removeprefix(KEY), parameters[key]
        for each in (of, name):
            if each not in by_name:
                raise ValueError(f"{key} {name!r}: there is no input {each!r}")
        _check(key, by_name[of], by_name[name])
        masks.append(_mask(inputs, by_name[of], by_name[name]))
    taken = [mask.tensor.name for mask in masks]
    masked = {mask.of for mask in masks}
    if len(set(taken)) < len(taken) or masked & set(taken):
        raise ValueError(f"{KEY}*: {taken} must be different inputs, and not masked themselves")
    sent = tuple(tensor for tensor in inputs if tensor.name not in taken)
    return sent, tuple(masks)


def _check(key: str, of: TensorSpec, mask: TensorSpec) -> None:
    if not of.ragged:
        raise ValueError(f"{key} {mask.name!r}: input {of.name!r} has no allow_ragged_batch")
    if mask.datatype == "BYTES":
        raise ValueError(f"{key} {mask.name!r}: a mask is made of numbers, not TYPE_STRING")
    leading, rest = of.dims[: len(mask.dims)], of.dims[len(mask.dims) :]
    if mask.dims != leading or -1 in rest:
        raise ValueError(
            f"{key} {mask.name!r}: dims {list(mask.dims)} must be the first of {list(of.dims)}, "
            "those of -1 among them"
        )


def _mask(inputs: Inputs, of: TensorSpec, mask: TensorSpec) -> MaskInput:
    position = [tensor.name for tensor in inputs].index(mask.name)
    return MaskInput(
        tensor=mask.model_copy(update={"optional": of.optional}), of=of.name, position=position
    )
