"""The `model_warmup` samples of a `config.pbtxt`, whose files lie in <model>/warmup/."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal

from shared.datatypes import NUMPY_TYPES, from_bytes
from shared.errors import BadMessage
from shared.model_spec import ModelSpec, TensorSpec
from worker.repository.config.parameters import plain_name
from worker.repository.config.tensors import read_datatype

DIRECTORY = "warmup"


@dataclass(frozen=True)
class WarmupInput:
    """One input's made-up row: zeros, random values, or the content of `file`."""

    name: str
    datatype: str
    dims: tuple[int, ...]
    kind: Literal["zero", "random", "file"]
    file: Path | None = None


@dataclass(frozen=True)
class WarmupSample:
    """A request of `rows` equal rows, run `count` times before the model is ready."""

    name: str
    rows: int
    inputs: tuple[WarmupInput, ...]
    count: int


def read_warmup(message: Any, spec: ModelSpec, directory: Path) -> tuple[WarmupSample, ...]:
    """Return the samples; raises ValueError naming the sample, the field and the value.

    Source: ModelWarmup in Triton's model_config.proto. Inputs are checked like a request's.
    """
    return tuple(
        _sample(sample, sample.name or str(index), spec, directory)
        for index, sample in enumerate(message.model_warmup)
    )


def _sample(sample: Any, name: str, spec: ModelSpec, directory: Path) -> WarmupSample:
    where = f"model_warmup {name!r}"
    if not 1 <= sample.batch_size <= spec.batch_rows:
        raise ValueError(
            f"{where}: batch_size {sample.batch_size} must be from 1 to {spec.batch_rows}"
        )
    declared = spec.inputs_by_name
    unknown = sorted(set(sample.inputs) - set(declared))
    if unknown:
        raise ValueError(f"{where}: inputs {unknown}: the model's are {sorted(declared)}")
    missing = [each for each in declared if each not in sample.inputs]
    if missing := [each for each in missing if not declared[each].optional]:
        raise ValueError(f"{where}: inputs: {missing} are missing")
    inputs = [
        _input(sample.inputs[each], declared[each], f"{where}: input {each!r}", directory)
        for each in declared
        if each in sample.inputs
    ]
    return WarmupSample(name, sample.batch_size, tuple(inputs), max(1, sample.count))


def _input(item: Any, declared: TensorSpec, where: str, directory: Path) -> WarmupInput:
    datatype, dims = read_datatype(item.data_type, where), tuple(item.dims)
    if datatype != declared.datatype:
        raise ValueError(f"{where}: data_type {datatype}, the model wants {declared.datatype}")
    if len(dims) != len(declared.dims) or any(
        got < 1 or want not in (-1, got) for got, want in zip(dims, declared.dims, strict=True)
    ):
        raise ValueError(f"{where}: dims {list(dims)}, the model wants {list(declared.dims)}")
    kind = item.WhichOneof("input_data_type")
    if kind is None:
        raise ValueError(f"{where}: one of zero_data, random_data, input_data_file is missing")
    if kind != "input_data_file":
        return WarmupInput(
            declared.name, datatype, dims, "zero" if kind == "zero_data" else "random"
        )
    field = f"{where}: input_data_file"
    file = directory / DIRECTORY / plain_name(field, item.input_data_file)
    _check_file(file, datatype, dims, where)
    return WarmupInput(declared.name, datatype, dims, "file", file)


def _check_file(file: Path, datatype: str, dims: tuple[int, ...], where: str) -> None:
    if not file.is_file():
        raise ValueError(f"{where}: input_data_file {file} is missing")
    if datatype == "BYTES":
        try:
            from_bytes(file.read_bytes(), datatype, dims)
        except BadMessage as error:
            raise ValueError(f"{where}: input_data_file {file}: {error}") from error
        return
    wanted, size = prod(dims) * NUMPY_TYPES[datatype].itemsize, file.stat().st_size
    if size != wanted:
        raise ValueError(
            f"{where}: input_data_file {file} has {size} bytes, dims {list(dims)} want {wanted}"
        )
