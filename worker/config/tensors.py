"""The `input` and `output` blocks of a `config.pbtxt`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tritonclient.grpc import model_config_pb2

from shared.datatypes import DATATYPES
from shared.model_spec import TensorSpec
from worker.config.parameters import plain_name


def read_tensor(item: Any, directory: Path) -> TensorSpec:
    """Return one declared input or output; raises ValueError naming the tensor and the field."""
    datatype = model_config_pb2.DataType.Name(item.data_type).removeprefix("TYPE_")
    datatype = "BYTES" if datatype == "STRING" else datatype
    if datatype not in DATATYPES:
        raise ValueError(f"tensor {item.name!r}: data_type {datatype} is not supported")
    if not item.dims:
        raise ValueError(f"tensor {item.name!r}: dims must not be empty")
    if any(size == 0 or size < -1 for size in item.dims):
        raise ValueError(f"tensor {item.name!r}: dims {list(item.dims)} must be positive or -1")
    label_file = getattr(item, "label_filename", "")
    return TensorSpec(
        name=item.name,
        datatype=datatype,
        dims=tuple(item.dims),
        ragged=getattr(item, "allow_ragged_batch", False),
        labels=_labels(directory / plain_name("label_filename", label_file)) if label_file else (),
    )


def _labels(path: Path) -> tuple[str, ...]:
    return tuple(line.strip() for line in path.read_text().splitlines() if line.strip())
