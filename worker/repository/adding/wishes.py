"""The options that say of a model what its file does not: written into a config, or compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tritonclient.grpc import model_config_pb2

from shared.errors import BadModel
from worker.repository.adding.notation import COLOURS, PIXEL_SCALE, Wanted, said, write_tensor

TOKENS = {"input_ids", "attention_mask", "token_type_ids"}


@dataclass(frozen=True)
class Wishes:
    """The options of `ferry add` and `ferry serve`; what was not said is empty, or None."""

    inputs: tuple[Wanted, ...] = ()
    outputs: tuple[Wanted, ...] = ()
    max_batch_size: int | None = None
    architecture: str = ""
    labels: Path | None = None
    tokenizer: Path | None = None
    parameters: Mapping[str, str] = field(default_factory=dict)


def write_wishes(message: Any, wishes: Wishes) -> list[str]:
    """Write the wishes over a config, as far as it is complete; return notes for people.

    Raises BadModel for a tensor that the config, completed from the file, does not have.
    """
    notes = []
    for option, items, wanted in (
        ("--input", message.input, wishes.inputs), ("--output", message.output, wishes.outputs)
    ):  # fmt: skip
        known = len(items) > 0
        for each in wanted:
            write_tensor(_item(items, each, option) if known else items.add(), each)
    picture = next((each for each in wishes.inputs if each.is_image), None)
    parameters = dict(wishes.parameters)
    if wishes.architecture:
        parameters["architecture"] = wishes.architecture
    if picture is not None:
        notes += _picture(message, picture, parameters)
    if wishes.tokenizer is not None:
        _texts(message, parameters)
    for key, value in parameters.items():
        message.parameters[key].string_value = value
    if wishes.max_batch_size == 0:
        _unbatch(message)
    elif wishes.max_batch_size is not None:
        message.max_batch_size = wishes.max_batch_size
    return notes


def _item(items: Any, wanted: Wanted, option: str) -> Any:
    """Return the declared tensor that is meant; the name `image` means the only one there is."""
    for item in items:
        if item.name == wanted.name:
            return item
    if wanted.is_image and len(items) == 1:
        return items[0]
    there = ", ".join(map(said, items))
    raise BadModel(f"{option} {wanted}: the file has no {wanted.name!r}, it has {there}")


def _picture(message: Any, picture: Wanted, parameters: dict[str, str]) -> list[str]:
    """Say how pictures become the input, for what the parameters do not; return notes."""
    item = next((each for each in message.input if each.name == picture.name), message.input[0])
    layout = model_config_pb2.ModelInput.Format.Value(f"FORMAT_{picture.layout}")
    item.format = layout
    if item is not message.input[0]:
        raise BadModel(f"--input {picture.name}: pictures are the first input, name it first")
    parameters["input_kind"] = "image"
    parameters.setdefault("image_channels", COLOURS[picture.channels])
    if {"image_scale", "image_mean", "image_std"} & parameters.keys():
        return []
    parameters["image_scale"] = PIXEL_SCALE
    return [
        f"{item.name}: pixels are divided by 255; what else training did to them is said by "
        "--parameter image_mean=... and --parameter image_std=..."
    ]


def _texts(message: Any, parameters: dict[str, str]) -> None:
    """Declare that texts become ids, which may differ in length within a batch."""
    parameters["input_kind"] = "text"
    for item in message.input:
        if item.name in TOKENS and -1 in item.dims:
            item.allow_ragged_batch = True


def _unbatch(message: Any) -> None:
    """Take the batch dimension of a completed config for one of the tensors' own."""
    if not message.max_batch_size:
        return
    message.max_batch_size = 0
    message.ClearField("dynamic_batching")
    for item in [*message.input, *message.output]:
        row = list(item.reshape.shape) if item.HasField("reshape") else list(item.dims)
        item.ClearField("reshape")
        item.dims[:] = [-1, *row]


def conflicts(there: Any, wishes: Wishes) -> str:
    """Return the first wish that a config of a model that is there does not fulfil, if any."""
    for option, items, wanted in (
        ("--input", there.input, wishes.inputs), ("--output", there.output, wishes.outputs)
    ):  # fmt: skip
        declared = ", ".join(map(said, items))
        for each in wanted:
            same = [item for item in items if item.name == each.name or each.is_image]
            if not any(tuple(item.dims) == each.dims and _typed(item, each) for item in same):
                return f"{option} {each}, but it is {declared}"
    if wishes.max_batch_size not in (None, there.max_batch_size):
        return f"--max-batch-size {wishes.max_batch_size}, but it is {there.max_batch_size}"
    known = {key: value.string_value for key, value in there.parameters.items()}
    architecture = {"architecture": wishes.architecture} if wishes.architecture else {}
    for key, value in {**wishes.parameters, **architecture}.items():
        if known.get(key) != value:
            return f"{key} {value!r}, but it is {known.get(key)!r}"
    return ""


def _typed(item: Any, wanted: Wanted) -> bool:
    return not wanted.datatype or said(item).endswith(f":{wanted.datatype}")
