"""Reads one model directory's `config.pbtxt` (Triton's text format) into a `ModelSpec`.

The fields and their defaults are those of Triton's model_config.proto; pre- and
post-processing are described by the config's own `parameters`, see docs/models.md.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf import json_format, text_format
from pydantic import ValidationError
from tritonclient.grpc import model_config_pb2

from shared.errors import BadModel
from shared.model_spec import ModelSpec
from worker.repository.config import ensemble
from worker.repository.config.as_json import config_json
from worker.repository.config.batching import read_batching
from worker.repository.config.completion import complete
from worker.repository.config.fields import check_fields
from worker.repository.config.formats import ModelFile, content_fault, find_format
from worker.repository.config.groups import InstanceGroup, read_groups
from worker.repository.config.image import read_image
from worker.repository.config.parameters import parameter_notes
from worker.repository.config.tensors import check_tensors, read_tensor, take_masks, with_labels
from worker.repository.config.text import vocabulary_sizes
from worker.repository.config.versions import VersionPolicy, read_version_policy
from worker.repository.config.warmup import WarmupSample, read_warmup
from worker.repository.execution import execution_policy
from worker.repository.file_kinds import MISSING, RUN_CODE
from worker.repository.overrides import check_same_file, overridden
from worker.repository.text_file import read_text

LINE_END = re.compile("\r\n?")


@dataclass(frozen=True)
class ModelConfig:
    """A config file's content: the spec, for the registry, and fields that only the worker needs.

    A text model's spec gets its `text` with the tokenizer, from `worker.repository.models`. `notes`
    are sentences on fields that are set without effect.
    """

    spec: ModelSpec
    backend: str
    filename: str
    instance_groups: tuple[InstanceGroup, ...]
    parameters: dict[str, str]
    version_policy: VersionPolicy = field(default_factory=VersionPolicy)
    warmup: tuple[WarmupSample, ...] = ()
    notes: tuple[str, ...] = ()


def read_config(
    path: Path, version: str, override: str | None = None, *, trusted: Collection[str] = RUN_CODE
) -> ModelConfig:
    """Parse and check one `config.pbtxt`; raises BadModel naming file, field and value.

    `override` is a configuration as JSON, see `overridden`. Fields that are left out are completed
    from the model's file, where that tells them; the config file may be missing then.
    """
    with _naming(path, override):
        message = _parsed(path, override)
        if override is not None:
            check_same_file(_parsed(path, None), message, path.parent / version)
        return _config(message, path.parent, version, trusted)


def read_policy(path: Path, override: str | None = None) -> VersionPolicy:
    """Return which versions a `config.pbtxt` wants to be served; raises BadModel."""
    with _naming(path, override):
        return read_version_policy(_parsed(path, override))


def read_message(path: Path) -> Any:
    """Return a config file as a ModelConfig message, as it stands; raises BadModel."""
    with _naming(path, None):
        return _parsed(path, None)


def completed(path: Path, version: str, *, trusted: Collection[str] = RUN_CODE) -> Any:
    """Return a config as a ModelConfig message, with all that its model's file says filled in.

    Raises BadModel as `read_config` does.
    """
    with _naming(path, None):
        message = _parsed(path, None)
        found = _completed(message, path.parent / version, trusted)
        if not message.platform and not message.backend:
            message.platform, message.backend = found.format.platform, found.format.triton_backend
        return message


def _parsed(path: Path, override: str | None) -> Any:
    text = read_text(path) if path.exists() else ""
    own = text_format.Parse(LINE_END.sub("\n", text), model_config_pb2.ModelConfig())
    return own if override is None else overridden(own, override)


@contextmanager
def _naming(path: Path, override: str | None) -> Iterator[None]:
    """Raise errors about a config as BadModel that names its file."""
    try:
        yield
    except (OSError, text_format.ParseError, json_format.ParseError, ValueError) as error:
        missing = override is None and not path.exists()
        where = f"{path} (missing)" if missing else path
        if override is not None:
            where = f"{path} (as given with the request)"
        raise BadModel(f"{where}: {_sentence(error)}") from error


def _config(message: Any, directory: Path, version: str, trusted: Collection[str]) -> ModelConfig:
    notes = check_fields(message)
    steps = ensemble.read_steps(message)
    found, filename, _ = _completed(message, directory / version, trusted)
    _check(message, directory)
    parameters = {key: value.string_value for key, value in message.parameters.items()}
    _check_kinds(parameters)
    declared = tuple(read_tensor(item, directory) for item in message.input)
    inputs, masks = take_masks(declared, parameters)
    spec = ModelSpec(
        name=directory.name,
        version=version,
        platform=message.platform or message.backend or found.platform or found.triton_backend,
        max_batch_size=message.max_batch_size,
        inputs=inputs,
        outputs=tuple(
            with_labels(read_tensor(item, directory), parameters) for item in message.output
        ),
        masks=masks,
        image=read_image(message, parameters),
        output_activation=parameters.get("output_activation", "softmax"),
        label_key=parameters.get("label_key"),
        parameters=parameters,
        config=config_json(message, directory.name, found.backend, filename),
        cached=message.response_cache.enable,
        steps=steps,
        **read_batching(message),
    )
    _check_activation(spec)
    vocabulary_sizes(spec)  # raises for what cannot be
    notes += parameter_notes(found.triton_backend, parameters)
    # raises likewise
    execution_policy(found.triton_backend, parameters, message.max_batch_size, inputs)
    if message.optimization.HasField("graph") and found.backend != "onnxruntime":
        notes.append("optimization.graph has no effect: only ONNX graphs are optimised on loading")
    return ModelConfig(
        spec, found.backend, filename, read_groups(message), parameters,
        read_version_policy(message), read_warmup(message, spec, directory), tuple(notes),
    )  # fmt: skip


def _check_kinds(parameters: Mapping[str, str]) -> None:
    """Raise ValueError for a kind of input or output that does not exist."""
    if (kind := parameters.get("input_kind", "tensor")) not in {"image", "text", "tensor"}:
        raise ValueError(f"input_kind {kind!r}: expected image, text or tensor")
    if (kind := parameters.get("output_kind", "scores")) not in {"scores", "embedding"}:
        raise ValueError(f"output_kind {kind!r}: expected scores or embedding")


def _completed(message: Any, directory: Path, trusted: Collection[str]) -> ModelFile:
    """Return the model's format and file, once fields left out of the config are filled in.

    Raises BadModel naming the file when nothing runs what is in it.
    """
    if message.platform == ensemble.PLATFORM:
        return ModelFile(ensemble.FORMAT, "", MISSING)
    has_architecture = "architecture" in message.parameters
    found = find_format(
        message.platform, message.backend, message.default_model_filename,
        has_architecture, directory,
    )  # fmt: skip
    file = directory / found.filename
    fault = content_fault(found, has_architecture=has_architecture, trusted=trusted)
    if fault:
        raise BadModel(f"failed to load '{directory.parent.name}', {file}: {fault}")
    complete(message, found.format, file)
    return found


def _check(message: Any, directory: Path) -> None:
    if message.max_batch_size < 0:
        raise ValueError(f"max_batch_size {message.max_batch_size} must not be negative")
    if message.name and message.name != directory.name:
        raise ValueError(f"name {message.name!r} differs from the directory's, {directory.name!r}")
    if not message.input or not message.output:
        raise ValueError("at least one input and one output must be declared")
    check_tensors(message)


def _check_activation(spec: ModelSpec) -> None:
    """Raise ValueError for the softmax of one score per row, which is 1 whatever the score is."""
    first = spec.outputs[0]
    is_one_score = all(size == 1 for size in first.dims) and first.datatype != "BYTES"
    if spec.parameters.get("output_activation") == "softmax" and is_one_score:
        raise ValueError(
            f"output_activation softmax: output {first.name!r} has one score per row by its dims "
            f"{list(first.dims)}, of which softmax makes 1 whatever it is, expected sigmoid (of a "
            "logit) or none (of a score from 0 to 1)"
        )


def _sentence(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return f"{where}: {first['msg']} (got {first['input']!r})"
    return str(error)
