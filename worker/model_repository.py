"""Finds a repository's models in Triton's layout: <name>/config.pbtxt and <name>/<version>/."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path

from shared.errors import BadModel
from shared.model_spec import ModelSpec, TextInput
from shared.registry import asset_digest
from worker.model_config import TEXT_INPUTS, ModelConfig, number, plain_name, read_config

log = logging.getLogger(__name__)

MODEL_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")


@dataclass(frozen=True)
class ServedModel:
    """One version of a model that is to be served: its spec, its file, its tokenizer."""

    config: ModelConfig
    spec: ModelSpec
    file: Path
    asset: bytes | None = None


def model_names(repository: Path) -> list[str]:
    """Return the names of the repository's model directories; raises BadModel without one."""
    if not repository.is_dir():
        raise BadModel(f"{repository}: no such model repository")
    return sorted(
        entry.name
        for entry in repository.iterdir()
        if (entry / "config.pbtxt").is_file() and MODEL_NAME.fullmatch(entry.name)
    )


def read_model(repository: Path, name: str) -> ServedModel:
    """Read the highest version of a model.

    Raises BadModel naming the file that is missing or wrong.
    """
    directory = repository / name
    versions = sorted(
        (entry.name for entry in directory.iterdir() if re.fullmatch(r"[1-9][0-9]*", entry.name)),
        key=int,
    )
    if not versions:
        raise BadModel(f"failed to load '{name}', {directory} has no version directory")
    config = read_config(directory / "config.pbtxt", versions[-1], (versions[-1],))
    file = directory / versions[-1] / config.filename
    if not file.is_file() or file.stat().st_size == 0:
        raise BadModel(f"failed to load '{name}', {file} is missing or empty")
    if config.parameters.get("input_kind") != "text":
        return ServedModel(config, config.spec, file)
    text, tokenizer = _text(config, directory)
    return ServedModel(config, config.spec.model_copy(update={"text": text}), file, tokenizer)


def _text(config: ModelConfig, directory: Path) -> tuple[TextInput, bytes]:
    """Return the text parameters and the tokenizer file's content."""
    names = {tensor.name for tensor in config.spec.inputs}
    if "input_ids" not in names or names - TEXT_INPUTS:
        raise BadModel(
            f'{directory}/config.pbtxt: a model with input_kind "text" has the inputs input_ids '
            f"and optionally attention_mask and token_type_ids, not {sorted(names)}"
        )
    try:
        filename = config.parameters.get("tokenizer", "tokenizer.json")
        tokenizer = (directory / plain_name("tokenizer", filename)).read_bytes()
        text = TextInput(
            tokenizer=asset_digest(tokenizer),
            max_length=number(config.parameters, "max_length", "512", int),
            truncate=config.parameters.get("truncate", "true") == "true",
        )
        return text, tokenizer
    except (OSError, ValueError) as error:
        raise BadModel(f"{directory}/config.pbtxt: {error}") from error
