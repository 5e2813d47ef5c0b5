"""The part of a configuration that a request to load a model may change.

An override comes from a client, or from Redis, which is worth no more. What names code or a file is
the operator's, in the repository: an override may repeat it, leave it out, and no more.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from google.protobuf import json_format

from worker.repository.config.ensemble import PLATFORM
from worker.repository.config.formats import find_format

HARMLESS_FIELDS = frozenset(
    {
        "name", "version_policy", "max_batch_size", "input", "output", "dynamic_batching",
        "instance_group", "response_cache", "optimization", "metric_tags",
    }
)  # fmt: skip
FILE_FIELDS = ("platform", "backend", "default_model_filename")
"""An override may say them in other words, as long as they mean the same file and framework."""
HARMLESS_PARAMETERS = re.compile(
    "input_kind|output_activation|label_key|image_.*|truncate|max_length|max_elements"
    "|vocabulary_size(:.*)?|ragged_mask:.*|max_gpu_memory_bytes|swap|allow_nondeterministic"
    "|INTRA_OP_THREAD_COUNT|NUM_THREADS|intra_op_thread_count"
)
MAX_INSTANCES = 64
"""Of an override, per device: each is a process."""
LONGEST_GIVEN = 60


def overridden(own: Any, override: str) -> Any:
    """Return a model's `own` configuration with the harmless fields of an override, JSON.

    What it may not change is the model's own, what it may change counts as it has it. Raises
    ValueError naming a field that it may not change. Whether both mean the same file is left to
    `check_same_file`.
    """
    message = json_format.Parse(override.removeprefix("\ufeff"), type(own)())
    for field, value in message.ListFields():
        if field.name in (*HARMLESS_FIELDS, *FILE_FIELDS, "parameters"):
            continue
        if value != getattr(own, field.name):
            raise ValueError(_refusal(field.name, value))
    _settle_parameters(own, message)
    _settle_labels(own.input, message.input, "input")
    _settle_labels(own.output, message.output, "output")
    if sum(max(1, group.count) for group in message.instance_group) > MAX_INSTANCES:
        raise ValueError(f"instance_group: a request may ask for {MAX_INSTANCES} instances at most")
    left_out = type(own)()
    left_out.CopyFrom(own)
    given = {field.name for field, _ in message.ListFields()}
    for name in HARMLESS_FIELDS | {"parameters"} | given:
        left_out.ClearField(name)
    message.MergeFrom(left_out)
    return message


def check_same_file(own: Any, message: Any, version: Path) -> None:
    """Raise ValueError unless an overridden configuration means its own file and framework.

    `version` is the directory of the version's files.
    """
    if own.platform == message.platform == PLATFORM:
        return
    expected = _file(own, own.platform, own.backend, version)
    for name, words in {
        "platform": (message.platform, ""),
        "backend": ("", message.backend),
    }.items():
        value = getattr(message, name)
        if value != getattr(own, name) and _file(message, *words, version) != expected:
            raise ValueError(_refusal(name, value))
    if _file(message, message.platform, message.backend, version) != expected:
        raise ValueError(_refusal("default_model_filename", message.default_model_filename))


def _file(message: Any, platform: str, backend: str, version: Path) -> object:
    architecture = "architecture" in message.parameters
    return find_format(platform, backend, message.default_model_filename, architecture, version)[:2]


def _settle_parameters(own: Any, message: Any) -> None:
    """Refuse a parameter that is changed and may not be, and take over what is left out of them."""
    for key, value in message.parameters.items():
        if HARMLESS_PARAMETERS.fullmatch(key) is None and (
            key not in own.parameters or own.parameters[key] != value
        ):
            raise ValueError(_refusal(f"parameters[{key}]", value.string_value))
    for key, value in own.parameters.items():
        if HARMLESS_PARAMETERS.fullmatch(key) is None:
            message.parameters[key].CopyFrom(value)


def _settle_labels(own: Any, tensors: Any, where: str) -> None:
    """Do so with the files of labels, which clients get to see."""
    files = {each.name: each.label_filename for each in own if hasattr(each, "label_filename")}
    for tensor in tensors:
        if not hasattr(tensor, "label_filename"):
            continue
        if tensor.label_filename not in ("", files.get(tensor.name, "")):
            raise ValueError(_refusal(f"{where}.label_filename", tensor.label_filename))
        tensor.label_filename = files.get(tensor.name, "")


def _refusal(field: str, value: object) -> str:
    said = repr(value) if isinstance(value, str | dict) else " ".join(str(value).split())
    if len(said) > LONGEST_GIVEN:
        said = f"{said[:LONGEST_GIVEN]}..."
    return (
        f"{field} {said} cannot be set by request: it would name other code or files, so it stands "
        "in the repository only"
    )
