"""Fills in the tensors and batch size that a `config.pbtxt` leaves out, from the model's file.

As in Triton ("Auto-Generated Model Configuration" in its model_configuration.md), a model that is
free in the first dimension of every tensor is taken to have a batch dimension, and gets a
`max_batch_size` of 4. A field that the config has is never changed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from google.protobuf import json_format
from tritonclient.grpc import model_config_pb2

from worker.repository.config.as_json import message_json
from worker.repository.config.description import Described, Description
from worker.repository.config.formats import Format
from worker.repository.describer import LONGEST_SECONDS, describe
from worker.repository.pipelines import describe_pipeline

DEFAULT_MAX_BATCH_SIZE = 4
"""Triton's `default-max-batch-size`."""
DESCRIBED = {"onnxruntime", "torch_export"}
"""The formats whose files name their inputs and outputs."""


def complete(
    message: Any, found: Format, file: Path, read: Callable[[Path], Description] = describe
) -> None:
    """Fill in inputs, outputs and max_batch_size of a ModelConfig from its model's file.

    Raises ValueError naming the fields to write where the file does not tell them. A max_batch_size
    of 0, or none, is meant when the declared dims have as many dimensions as the file's tensors.
    """
    missing = [name for name in ("input", "output") if not getattr(message, name)]
    if not missing and message.max_batch_size:
        return
    if found.backend == "python" and completes_itself(file):
        auto_complete(message, file)
        missing = [name for name in ("input", "output") if not getattr(message, name)]
    if found.backend == "joblib" and missing and file.is_file():
        _complete_pipeline(message, missing, file)
        return
    if found.backend not in DESCRIBED:
        if missing:
            raise ValueError(_what_to_write(missing, found, file))
        return
    if not missing and not file.is_file():
        return  # what is wrong with the file is told by who loads it
    try:
        description = read(file)
    except ValueError as error:
        if missing:
            raise ValueError(f"{' and '.join(missing)} left out, and {error}") from error
        return
    _complete_batch_size(message, description)
    for name in missing:
        declare(message, name, getattr(description, f"{name}s"))


def completes_itself(file: Path) -> bool:
    """Tell whether a `model.py` is one of Triton's that has an `auto_complete_config`."""
    return file.is_file() and b"def auto_complete_config" in file.read_bytes()


def auto_complete(message: Any, file: Path) -> None:
    """Add to a ModelConfig what the model's own `auto_complete_config` declares.

    Raises ValueError with the error of that code, or naming a field that is refused.
    """
    config = message_json(message) | {"name": file.parent.parent.name}
    done = subprocess.run(
        [sys.executable, "-m", "worker.instance.auto_complete", str(file)],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[3])},
        input=json.dumps(config).encode(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        timeout=LONGEST_SECONDS,
        check=False,
    )
    try:
        answer = json.loads(done.stdout)
        if "error" not in answer:
            return add_declared(message, answer)
    except (ValueError, json_format.ParseError) as error:
        answer = {"error": f"exit code {done.returncode}, {error}"}
    raise ValueError(f"auto_complete_config of {file}: {answer['error']}")


def add_declared(message: Any, config: dict[str, Any]) -> None:
    """Add batch size, tensors and batching that a message does not have yet."""
    if config.get("model_transaction_policy", {}).get("decoupled"):
        raise ValueError("decoupled models are not offered")
    message.max_batch_size = message.max_batch_size or config["max_batch_size"]
    for kind in ("input", "output"):
        known = {item.name for item in getattr(message, kind)}
        for each in config[kind]:
            if each["name"] not in known:
                json_format.ParseDict(each, getattr(message, kind).add())
    if "dynamic_batching" in config and message.WhichOneof("scheduling_choice") is None:
        message.dynamic_batching.SetInParent()


def _complete_pipeline(message: Any, missing: list[str], file: Path) -> None:
    """Fill in what a scikit-learn file takes and gives; the config's own words stay."""
    try:
        description, parameters = describe_pipeline(file)
    except ValueError as error:
        raise ValueError(f"{' and '.join(missing)} left out, and {error}") from error
    _complete_batch_size(message, description)
    for name in missing:
        declare(message, name, getattr(description, f"{name}s"))
    for key, value in parameters.items() if "output" in missing else ():
        if key not in message.parameters:
            message.parameters[key].string_value = value


def _what_to_write(missing: list[str], found: Format, file: Path) -> str:
    return (
        f"{' and '.join(missing)} left out, and a file like {file.name} ({found.backend}) does not "
        "say what goes in and out: write max_batch_size, input and output, each tensor with name, "
        "data_type and dims"
    )


def _complete_batch_size(message: Any, description: Description) -> None:
    if message.max_batch_size or description.rows is None:
        return
    by_name = {tensor.name: tensor for tensor in description.inputs + description.outputs}
    for item in [*message.input, *message.output]:
        dims = item.reshape.shape if item.HasField("reshape") else item.dims
        if item.name in by_name and len(dims) != len(by_name[item.name].shape) - 1:
            return  # its dims hold all dimensions: it is meant to have no batch dimension
    least, most = description.rows
    if least > 1:
        raise ValueError(
            f"max_batch_size left out, and the file takes from {least} rows: one row alone could "
            "not run; export it with a least size of 1"
        )
    message.max_batch_size = most or DEFAULT_MAX_BATCH_SIZE
    if message.max_batch_size > 1 and message.WhichOneof("scheduling_choice") is None:
        message.dynamic_batching.SetInParent()


def declare(message: Any, name: str, tensors: Iterable[Described]) -> None:
    """Add the tensors of a file to `message.input` or `message.output`."""
    for tensor in tensors:
        dims = tensor.shape
        if message.max_batch_size:
            if dims[:1] != [-1]:
                raise ValueError(
                    f"max_batch_size {message.max_batch_size}, but {name} {tensor.name!r} has the "
                    f"shape {dims} in the file, without a free first dimension: write 0"
                )
            dims = dims[1:]
        item = getattr(message, name).add()
        item.name = tensor.name
        item.data_type = model_config_pb2.DataType.Value(f"TYPE_{tensor.datatype}")
        item.dims.extend(dims or [1])
        if not dims:
            item.reshape.SetInParent()
        if tensor.optional:
            item.optional = True
