"""The `input` and `output` blocks of a `config.pbtxt`, and the masks among the inputs.

    parameters { key: "ragged_mask:<input>" value { string_value: "<the mask's input>" } }

A mask tells the model which rows of a ragged input were padded. It is declared like any other
input, but no client sends it: it is 1 where the input's rows have a value of their own and 0 where
they were padded to the longest of the batch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from tritonclient.grpc import model_config_pb2

from shared.datatypes import DATATYPES
from shared.model_spec import MaskInput, TensorSpec
from worker.repository.config.parameters import plain_name
from worker.repository.text_file import read_lines

PICTURE_DIMENSIONS = 3
MASK_KEY = "ragged_mask:"
LABELS_KEY = "labels:"
Inputs = tuple[TensorSpec, ...]


def read_tensor(item: Any, directory: Path) -> TensorSpec:
    """Return one declared input or output; raises ValueError naming the tensor and the field."""
    if not item.name:
        raise ValueError(f"tensor {item.name!r}: name must not be empty")
    if not item.dims:
        raise ValueError(f"tensor {item.name!r}: dims must not be empty")
    _check_sizes(item.name, "dims", item.dims)
    label_file = getattr(item, "label_filename", "")
    return TensorSpec(
        name=item.name,
        datatype=read_datatype(item.data_type, f"tensor {item.name!r}"),
        dims=tuple(item.dims),
        ragged=getattr(item, "allow_ragged_batch", False),
        labels=_labels(directory, label_file),
        optional=getattr(item, "optional", False),
        reshape=_reshape(item),
    )


def read_datatype(value: int, where: str) -> str:
    """Return the protocol's name of a `data_type`; raises ValueError for one that nobody has."""
    datatype = model_config_pb2.DataType.Name(value).removeprefix("TYPE_")
    datatype = "BYTES" if datatype == "STRING" else datatype
    if datatype not in DATATYPES:
        raise ValueError(f"{where}: data_type {datatype} is not supported")
    return datatype


def check_tensors(message: Any) -> None:
    """Raise ValueError for names that stand twice, and formats that do not fit the dims."""
    for tensors in (message.input, message.output):
        names = [item.name for item in tensors]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"tensor {twice!r} is declared twice")
    for item in message.input:
        if item.format and len(item.dims) != PICTURE_DIMENSIONS:
            layout = model_config_pb2.ModelInput.Format.Name(item.format)
            raise ValueError(
                f"input {item.name!r}: dims {list(item.dims)}, {layout} has {PICTURE_DIMENSIONS}"
            )


def _check_sizes(name: str, field: str, sizes: Any) -> None:
    if any(size == 0 or size < -1 for size in sizes):
        raise ValueError(f"tensor {name!r}: {field} {list(sizes)} must be positive or -1")


def _labels(directory: Path, filename: str) -> tuple[str, ...]:
    return read_lines(directory / plain_name("label_filename", filename)) if filename else ()


def with_labels(output: TensorSpec, parameters: Mapping[str, str]) -> TensorSpec:
    """Return an output with the labels that the parameter `labels:<output>` lists, if it does."""
    key = f"{LABELS_KEY}{output.name}"
    if key not in parameters or output.labels:
        return output
    try:
        labels = json.loads(parameters[key])
    except ValueError as error:
        raise ValueError(f"{key}: expected a JSON list of strings, {error}") from error
    if not isinstance(labels, list) or not all(isinstance(each, str) for each in labels):
        raise ValueError(f"{key}: expected a JSON list of strings, not {parameters[key]}")
    return output.model_copy(update={"labels": tuple(labels)})


def _reshape(item: Any) -> tuple[int, ...] | None:
    """Return the shape in the model, of the same size as dims: between -1 and -1 in each."""
    if not item.HasField("reshape"):
        return None
    shape = tuple(item.reshape.shape)
    _check_sizes(item.name, "reshape", shape)
    if _stretches(shape) != _stretches(item.dims):
        raise ValueError(
            f"tensor {item.name!r}: reshape {list(shape)} and dims {list(item.dims)} differ in "
            "their number of elements, or in that between their -1"
        )
    return shape


def _stretches(sizes: Any) -> list[int]:
    """Return the numbers of elements before, between and behind the -1: the -1 stay in order."""
    stretches: list[list[int]] = [[]]
    for size in sizes:
        if size == -1:
            stretches.append([])
        else:
            stretches[-1].append(size)
    return [prod(stretch) for stretch in stretches]


def take_masks(inputs: Inputs, parameters: dict[str, str]) -> tuple[Inputs, tuple[MaskInput, ...]]:
    """Return the inputs that clients send, and the masks; raises ValueError naming the parameter.

    Masks know their place among all inputs, which TorchScript may match by their order.
    """
    by_name = {tensor.name: tensor for tensor in inputs}
    masks = []
    for key in sorted(parameters):
        if not key.startswith(MASK_KEY):
            continue
        of, name = key.removeprefix(MASK_KEY), parameters[key]
        for each in (of, name):
            if each not in by_name:
                raise ValueError(f"{key} {name!r}: there is no input {each!r}")
        _check_mask(key, by_name[of], by_name[name])
        masks.append(_mask(inputs, by_name[of], by_name[name]))
    taken = [mask.tensor.name for mask in masks]
    masked = {mask.of for mask in masks}
    if len(set(taken)) < len(taken) or masked & set(taken):
        raise ValueError(
            f"{MASK_KEY}*: {taken} must be different inputs, and not masked themselves"
        )
    sent = tuple(tensor for tensor in inputs if tensor.name not in taken)
    return sent, tuple(masks)


def _check_mask(key: str, of: TensorSpec, mask: TensorSpec) -> None:
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
