"""The `input` and `output` blocks of a `config.pbtxt`."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

from tritonclient.grpc import model_config_pb2

from shared.datatypes import DATATYPES
from shared.model_spec import TensorSpec
from worker.repository.config.parameters import plain_name

PICTURE_DIMENSIONS = 3


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
        labels=_labels(directory / plain_name("label_filename", label_file)) if label_file else (),
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


def _labels(path: Path) -> tuple[str, ...]:
    return tuple(line.strip() for line in path.read_text().splitlines() if line.strip())
