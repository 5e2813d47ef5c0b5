"""Finds a repository's models in Triton's layout: <name>/config.pbtxt and <name>/<version>/."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from shared.errors import BadModel
from shared.model_spec import ModelSpec, TextInput
from shared.registry import asset_digest
from worker.config.parameters import number, plain_name
from worker.model_config import TEXT_INPUTS, ModelConfig, read_config

MODEL_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
VERSION = re.compile(r"[1-9][0-9]{0,18}")


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


def version_numbers(directory: Path) -> list[str]:
    """Return a model's version directories, the lowest first; raises BadModel when it has none."""
    try:
        names = [entry.name for entry in directory.iterdir() if entry.is_dir()]
    except OSError as error:
        raise BadModel(f"failed to load '{directory.name}', {error}") from error
    versions = sorted((name for name in names if VERSION.fullmatch(name)), key=int)
    if not versions:
        raise BadModel(f"failed to load '{directory.name}', {directory} has no version directory")
    return versions


def read_model(repository: Path, name: str, version: str | None = None) -> ServedModel:
    """Read one version of a model, its highest unless one is named.

    Raises BadModel naming the file that is missing or wrong.
    """
    directory = repository / name
    versions = version_numbers(directory)
    version = version or versions[-1]
    config = read_config(directory / "config.pbtxt", version, (version,))
    file = directory / version / config.filename
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
