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

from shared.datatypes import DATATYPES
from shared.errors import BadModel
from shared.model_spec import ImageInput, ModelSpec, TensorSpec

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
    unsupported = [field.name for field, _ in message.ListFields() if field.name not in SUPPORTED]
    if unsupported:
        raise ValueError(f"field {unsupported[0]!r} is not supported")
    if message.name and message.name != directory.name:
        raise ValueError(f"name {message.name!r} differs from the directory's, {directory.name!r}")
    if not message.input or not message.output:
        raise ValueError("at least one input and one output must be declared")
    parameters = {key: value.string_value for key, value in message.parameters.items()}
    backend = _backend(message)
    spec = ModelSpec(
        name=directory.name,
        version=version,
        versions=versions,
        platform=message.platform or message.backend,
        max_batch_size=message.max_batch_size,
        max_queue_delay_seconds=message.dynamic_batching.max_queue_delay_microseconds / 1e6,
        inputs=tuple(_tensor(item, directory) for item in message.input),
        outputs=tuple(_tensor(item, directory) for item in message.output),
        image=_image(message, parameters),
        output_activation=parameters.get("output_activation", "softmax"),
        label_key=parameters.get("label_key"),
        parameters=parameters,
    )
    return ModelConfig(
        spec,
        backend,
        _plain_name(message.default_model_filename or DEFAULT_FILES[backend]),
        tuple(_group(item) for item in message.instance_group) or (InstanceGroup(),),
        parameters,
    )


def _backend(message: Any) -> str:
    by_backend = {"pytorch": "torchscript", "onnxruntime": "onnxruntime"}
    backend = BACKENDS.get(message.platform) or by_backend.get(message.backend)
    if backend is None:
        raise ValueError(
            f"platform {message.platform!r}, backend {message.backend!r}: expected one of "
            f"{sorted(BACKENDS)} or {sorted(by_backend)}"
        )
    return backend


def _tensor(item: Any, directory: Path) -> TensorSpec:
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
        labels=_labels(directory / _plain_name(label_file)) if label_file else (),
    )


def _labels(path: Path) -> tuple[str, ...]:
    return tuple(line.strip() for line in path.read_text().splitlines() if line.strip())


def _group(item: Any) -> InstanceGroup:
    kind = model_config_pb2.ModelInstanceGroup.Kind.Name(item.kind).removeprefix("KIND_").lower()
    if kind not in {"auto", "gpu", "cpu"}:
        raise ValueError(f"instance_group: kind KIND_{kind.upper()} is not supported")
    return InstanceGroup(kind, max(1, item.count), tuple(item.gpus))


def _image(message: Any, parameters: dict[str, str]) -> ImageInput | None:
    """Read the `image_*` parameters; height, width and channels come from the first input."""
    if parameters.get("input_kind") != "image":
        return None
    item = message.input[0]
    layout = "NHWC" if item.format == model_config_pb2.ModelInput.FORMAT_NHWC else "NCHW"
    channels, height, width = (
        item.dims if layout == "NCHW" else (item.dims[2], item.dims[0], item.dims[1])
    )
    order = parameters.get("image_channels", "RGB")
    if channels != (1 if order == "L" else 3):
        raise ValueError(f"image_channels {order!r} does not fit {channels} channels in dims")
    return ImageInput.model_validate(
        {
            "input": item.name,
            "height": height,
            "width": width,
            "channels": order,
            "layout": layout,
            "resize": parameters.get("image_resize", "stretch"),
            "resize_size": int(parameters.get("image_resize_size", 0)),
            "interpolation": parameters.get("image_interpolation", "bilinear"),
            "background": _numbers(parameters.get("image_background", "255,255,255"), int),
            "scale": float(parameters.get("image_scale", 1)),
            "mean": _numbers(parameters.get("image_mean", "0"), float),
            "std": _numbers(parameters.get("image_std", "1"), float),
        }
    )


def _numbers(text: str, kind: type[int] | type[float]) -> tuple[float, ...]:
    return tuple(kind(part) for part in text.split(","))


def _plain_name(name: str) -> str:
    """Refuse names that would leave the model's own directory."""
    if Path(name).name != name or name in {".", ".."}:
        raise ValueError(f"file name {name!r} must not contain a path")
    return name


def _sentence(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return f"{where}: {first['msg']} (got {first['input']!r})"
    return str(error)
