"""Reads one model directory's `config.pbtxt` (Triton's text format) into a `ModelSpec`.

The fields and their defaults are those of Triton's model_config.proto; what pre- and
post-processing need stands in the config's own `parameters`, described in docs/models.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from google.protobuf import text_format
from pydantic import ValidationError
from tritonclient.grpc import model_config_pb2

from shared.datatypes import DATATYPES
from shared.errors import BadModel
from shared.model_spec import ImageInput, ModelSpec, TensorSpec
from worker.config_json import config_json

BACKENDS = {"pytorch_libtorch": "torchscript", "onnxruntime_onnx": "onnxruntime"}
DEFAULT_FILES = {"torchscript": "model.pt", "onnxruntime": "model.onnx"}
SUPPORTED = {
    "name", "platform", "backend", "max_batch_size", "input", "output", "instance_group",
    "dynamic_batching", "parameters", "default_model_filename",
}  # fmt: skip
Number = TypeVar("Number", int, float)
MAX_PRIORITY_LEVELS = 100
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
    levels, default_level = _priorities(message.dynamic_batching)
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
        inputs=tuple(_tensor(item, directory) for item in message.input),
        outputs=tuple(_tensor(item, directory) for item in message.output),
        image=_image(message, parameters),
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


def _priorities(batching: Any) -> tuple[int, int]:
    """Return the levels of priority and the default one, which Triton wants if there are any."""
    levels, default = batching.priority_levels, batching.default_priority_level
    if levels > MAX_PRIORITY_LEVELS:
        raise ValueError(f"priority_levels {levels} must not exceed {MAX_PRIORITY_LEVELS}")
    if levels and not 1 <= default <= levels:
        raise ValueError(f"default_priority_level {default} must be from 1 to {levels}")
    return levels, default if levels else 1


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
        labels=_labels(directory / plain_name("label_filename", label_file)) if label_file else (),
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
    channels, height, width = _picture_dims(item, layout)
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
            "resize_size": number(parameters, "image_resize_size", "0", int),
            "interpolation": parameters.get("image_interpolation", "bilinear"),
            "background": _numbers(parameters, "image_background", "255,255,255", int),
            "scale": number(parameters, "image_scale", "1", float),
            "mean": _per_channel(parameters, "image_mean", "0", channels),
            "std": _per_channel(parameters, "image_std", "1", channels),
        }
    )


def _picture_dims(item: Any, layout: str) -> tuple[int, int, int]:
    """Return channels, height and width."""
    dims = tuple(item.dims)
    if len(dims) != len(layout) - 1 or min(dims) < 1:
        raise ValueError(
            f"input {item.name!r}: dims {list(dims)}, a picture has {layout[1:]} of fixed size"
        )
    return dims if layout == "NCHW" else (dims[2], dims[0], dims[1])


def number(parameters: dict[str, str], key: str, default: str, kind: type[Number]) -> Number:
    """Return the one number in a parameter; raises ValueError naming key and value."""
    return _numbers(parameters, key, default, kind, count=1)[0]


def _numbers(
    parameters: dict[str, str], key: str, default: str, kind: type[Number], count: int = 0
) -> tuple[Number, ...]:
    text = parameters.get(key, default)
    try:
        found = tuple(kind(part) for part in text.split(","))
    except ValueError:
        raise ValueError(
            f"{key} {text!r}: expected {kind.__name__}s, separated by commas"
        ) from None
    if count and len(found) != count:
        raise ValueError(f"{key} {text!r}: {len(found)} numbers, expected {count}")
    return found


def _per_channel(
    parameters: dict[str, str], key: str, default: str, channels: int
) -> tuple[float, ...]:
    """Return one number for all channels, or one for each."""
    found = _numbers(parameters, key, default, float)
    if len(found) not in {1, channels}:
        raise ValueError(f"{key}: {len(found)} numbers for {channels} channels (got {list(found)})")
    if key == "image_std" and 0.0 in found:
        raise ValueError(f"{key}: must not be 0 (got {list(found)})")
    return found


def plain_name(field: str, name: str) -> str:
    """Return a file's name; refuses those that would leave the model's own directory."""
    if Path(name).name != name or name in {".", ".."}:
        raise ValueError(f"{field} {name!r} must not contain a path")
    return name


def _sentence(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return f"{where}: {first['msg']} (got {first['input']!r})"
    return str(error)
