"""Reads one model directory's `config.pbtxt` (Triton's text format) into a `ModelSpec`.

The fields and their defaults are those of Triton's model_config.proto; what pre- and
post-processing need stands in the config's own `parameters`, described in docs/models.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from pydantic import ValidationError
from tritonclient.grpc import model_config_pb2

from shared.errors import BadModel
from shared.model_spec import ModelSpec
from worker.config.as_json import config_json
from worker.config.batching import read_priorities
from worker.config.image import read_image
from worker.config.parameters import plain_name
from worker.config.tensors import read_tensor

BACKENDS = {"pytorch_libtorch": "torchscript", "onnxruntime_onnx": "onnxruntime"}
DEFAULT_FILES = {"torchscript": "model.pt", "onnxruntime": "model.onnx"}
SUPPORTED = {
    "name", "platform", "backend", "max_batch_size", "input", "output", "instance_group",
    "dynamic_batching", "parameters", "default_model_filename",
}  # fmt: skip
TEXT_INPUTS = {"input_ids", "attention_mask", "token_type_ids"}


@dataclass(frozen=True)
class InstanceGroup:
    """How many processes on which kind of device: `auto`, `gpu` or `cpu`."""

    kind: str = "auto"
    count: int = 1
    gpus: tuple[int, ...] = ()


@dataclass(frozen=True)
class ModelConfig:
    """A config file's content: what the registry gets, and what only the worker needs.

    `tokenizer` is the file that the supervisor stores as an asset of the registry; until then
    the spec's `text` is None.
    """

    spec: ModelSpec
    backend: str
    filename: str
    instance_groups: tuple[InstanceGroup, ...]
    parameters: dict[str, str]


def read_config(path: Path, version: str, versions: tuple[str, ...]) -> ModelConfig:
    """Parse and check one `config.pbtxt`; raises BadModel naming file, field and value."""
    message = model_config_pb2.ModelConfig()
    try:
        text_format.Parse(path.read_text(), message)
        return _config(message, path.parent, version, versions)
    except (OSError, UnicodeDecodeError, text_format.ParseError, ValueError) as error:
        raise BadModel(f"{path}: {_sentence(error)}") from error


def _config(message: Any, directory: Path, version: str, versions: tuple[str, ...]) -> ModelConfig:
    _check(message, directory)
    parameters = {key: value.string_value for key, value in message.parameters.items()}
    if (kind := parameters.get("input_kind", "tensor")) not in {"image", "text", "tensor"}:
        raise ValueError(f"input_kind {kind!r}: expected image, text or tensor")
    backend = _backend(message)
    filename = plain_name(
        "default_model_filename", message.default_model_filename or DEFAULT_FILES[backend]
    )
    levels, default_level = read_priorities(message.dynamic_batching)
    spec = ModelSpec(
        name=directory.name,
        version=version,
        versions=versions,
        platform=message.platform or message.backend,
        max_batch_size=message.max_batch_size,
        max_queue_delay_seconds=message.dynamic_batching.max_queue_delay_microseconds / 1e6,
        max_queue_size=message.dynamic_batching.default_queue_policy.max_queue_size,
        priority_levels=levels,
        default_priority_level=default_level,
        inputs=tuple(read_tensor(item, directory) for item in message.input),
        outputs=tuple(read_tensor(item, directory) for item in message.output),
        image=read_image(message, parameters),
        output_activation=parameters.get("output_activation", "softmax"),
        label_key=parameters.get("label_key"),
        parameters=parameters,
        config=config_json(message, directory.name, backend, filename),
    )
    return ModelConfig(
        spec,
        backend,
        filename,
        tuple(_group(item) for item in message.instance_group) or (InstanceGroup(),),
        parameters,
    )


def _check(message: Any, directory: Path) -> None:
    if message.max_batch_size < 0:
        raise ValueError(f"max_batch_size {message.max_batch_size} must not be negative")
    unsupported = [field.name for field, _ in message.ListFields() if field.name not in SUPPORTED]
    if unsupported:
        raise ValueError(f"field {unsupported[0]!r} is not supported")
    if message.name and message.name != directory.name:
        raise ValueError(f"name {message.name!r} differs from the directory's, {directory.name!r}")
    if not message.input or not message.output:
        raise ValueError("at least one input and one output must be declared")


def _backend(message: Any) -> str:
    by_backend = {"pytorch": "torchscript", "onnxruntime": "onnxruntime"}
    backend = BACKENDS.get(message.platform) or by_backend.get(message.backend)
    if backend is None:
        raise ValueError(
            f"platform {message.platform!r}, backend {message.backend!r}: expected one of "
            f"{sorted(BACKENDS)} or {sorted(by_backend)}"
        )
    return backend


def _group(item: Any) -> InstanceGroup:
    kind = model_config_pb2.ModelInstanceGroup.Kind.Name(item.kind).removeprefix("KIND_").lower()
    if kind not in {"auto", "gpu", "cpu"}:
        raise ValueError(f"instance_group: kind KIND_{kind.upper()} is not supported")
    return InstanceGroup(kind, max(1, item.count), tuple(item.gpus))


def _sentence(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return f"{where}: {first['msg']} (got {first['input']!r})"
    return str(error)
