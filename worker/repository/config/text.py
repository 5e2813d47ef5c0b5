"""The way from a text to a model's inputs: which tensors take token ids, and how many."""

from __future__ import annotations

from collections.abc import Mapping

from shared.model_spec import ModelSpec, TensorSpec, fixed_length
from worker.repository.config.parameters import number

IDS = "input_ids"
VOCABULARY_KEY = "vocabulary_size"
TEXT_INPUTS = {IDS, "attention_mask", "token_type_ids"}
ID_TYPES = ("INT64", "INT32", "UINT64", "UINT32", "FP64", "FP32")
"""What holds the number of every token exactly; masks and types are 0 and 1."""


def check_text_inputs(spec: ModelSpec) -> None:
    """Raise ValueError unless a text's ids, which the API casts and pads, can be the inputs."""
    names = {tensor.name for tensor in spec.inputs}
    if IDS not in names or names - TEXT_INPUTS:
        raise ValueError(
            'a model with input_kind "text" has the inputs input_ids and optionally '
            f"attention_mask and token_type_ids, not {sorted(names)}"
        )
    for tensor in spec.inputs:
        _check_datatype(tensor)
        _check_dims(tensor, batched=spec.batched)
    lengths = {tensor.name: tensor.dims[-1] for tensor in spec.inputs}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"a text has as many tokens in each of its inputs, the dims say {lengths}")


def token_limit(spec: ModelSpec, tokenizers_limit: int | None) -> int:
    """Return the most tokens of a text: `max_length`, but no more than the inputs hold.

    Without that parameter it is the length that the tokenizer's own files name, else 512. Raises
    ValueError naming parameter and value.
    """
    limit = number(spec.parameters, "max_length", str(tokenizers_limit or 512), int)
    if limit < 1:
        raise ValueError(f"max_length {limit}: expected a number from 1")
    return min(limit, fixed_length(spec.inputs) or limit)


def vocabulary_sizes(spec: ModelSpec) -> Mapping[str, int]:
    """Return by input how many token ids it may hold, as `vocabulary_size[:<input>]` says.

    Without an input's name that is `input_ids`, or without such an input all of whole numbers.
    Raises ValueError naming parameter and value.
    """
    sizes: dict[str, int] = {}
    for key in sorted(spec.parameters):  # the one for all is the first
        if key != VOCABULARY_KEY and not key.startswith(f"{VOCABULARY_KEY}:"):
            continue
        size = number(spec.parameters, key, "", int)
        if size < 1:
            raise ValueError(f"{key} {size}: expected a number from 1")
        sizes |= dict.fromkeys(_holders(spec, key), size)
    return sizes


def _holders(spec: ModelSpec, key: str) -> list[str]:
    """Return the inputs that a `vocabulary_size` is about."""
    _, _, named = key.partition(":")
    if named or IDS in spec.inputs_by_name:
        names = [named or IDS]
    else:
        names = [each.name for each in spec.inputs if each.datatype.startswith(("INT", "UINT"))]
    if not names or names[0] not in spec.inputs_by_name:
        raise ValueError(f"{key}: there is no input {named or 'of whole numbers'!r}")
    if spec.inputs_by_name[names[0]].datatype in {"BYTES", "BOOL"}:
        raise ValueError(f"{key}: input {names[0]!r} holds no numbers")
    return names


def _check_datatype(tensor: TensorSpec) -> None:
    if tensor.name == IDS and tensor.datatype not in ID_TYPES:
        raise ValueError(
            f"input {IDS!r}: {tensor.datatype} cannot hold the ids of a vocabulary, expected one "
            f"of {', '.join(ID_TYPES)}"
        )
    if tensor.datatype == "BYTES":
        raise ValueError(f"input {tensor.name!r}: expected a datatype of numbers, not TYPE_STRING")


def _check_dims(tensor: TensorSpec, *, batched: bool) -> None:
    """Raise ValueError unless the dims are a row of tokens; without a batch, one row may be."""
    leading = tensor.dims[:-1]
    if leading and (batched or leading not in {(1,), (-1,)}):
        expected = "[length]" if batched else "[length] or [1, length]"
        raise ValueError(
            f"input {tensor.name!r}: dims {list(tensor.dims)}, a text has {expected}, which may "
            "be -1"
        )
