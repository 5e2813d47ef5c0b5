"""Finds a repository's models in Triton's layout: <name>/config.pbtxt and <name>/<version>/."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

from shared.errors import BadModel
from shared.model_spec import EnsembleStep, ModelSpec, TextInput
from shared.names import MODEL_NAME, VERSION
from shared.registry.registry import asset_digest
from worker.repository.config.ensemble import EnsembleCircle, with_models
from worker.repository.config.formats import FORMATS
from worker.repository.config.parameters import plain_name
from worker.repository.config.text import check_text_inputs, token_limit
from worker.repository.config.versions import wanted_versions
from worker.repository.model_config import ModelConfig, read_config, read_policy
from worker.repository.text_file import read_text

log = logging.getLogger(__name__)

KNOWN_FILES = tuple(name for each in FORMATS for name in each.files)


@dataclass(frozen=True)
class ServedModel:
    """One version of a model that is to be served: its spec, its file, its tokenizer."""

    config: ModelConfig
    spec: ModelSpec
    file: Path
    asset: bytes | None = None

    def with_revision(self, number: int) -> ServedModel:
        """Return the same content under the name of its revision."""
        spec = self.spec.model_copy(update={"revision": number})
        return replace(self, spec=spec)


def model_names(repository: Path) -> list[str]:
    """Return the names of the repository's model directories; raises BadModel without one."""
    if not repository.is_dir():
        raise BadModel(f"{repository}: no such model repository")
    return sorted(
        entry.name
        for entry in repository.iterdir()
        if MODEL_NAME.fullmatch(entry.name) and is_model(entry)
    )


def is_model(directory: Path) -> bool:
    """Tell whether a directory has a `config.pbtxt`, or a version with a file known by its name."""
    return (directory / "config.pbtxt").is_file() or any(
        VERSION.fullmatch(file.parent.name) and file.is_file()
        for name in KNOWN_FILES
        for file in directory.glob(f"*/{name}")
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


def policy_versions(repository: Path, name: str, override: str | None = None) -> list[str]:
    """Return the versions that a model's version policy wants; raises BadModel."""
    directory = repository / name
    policy = read_policy(directory / "config.pbtxt", override)
    return wanted_versions(policy, version_numbers(directory))


def read_model(
    repository: Path,
    name: str,
    version: str | None = None,
    override: str | None = None,
    within: tuple[str, ...] = (),
) -> ServedModel:
    """Read one version of a model, its highest unless one is named.

    `override` is a configuration as JSON that counts instead of the repository's, `within` are the
    ensembles that it is a step of.

    Raises BadModel naming the file that is missing or wrong.
    """
    directory = repository / name
    versions = version_numbers(directory)
    version = version or versions[-1]
    config = read_config(directory / "config.pbtxt", version, override)
    for note in config.notes:
        log.warning("%s/config.pbtxt: %s", directory, note)
    file = directory / version / config.filename
    if config.spec.steps:
        config = _with_steps(repository, config, (*within, name))
    elif not file.is_file() or file.stat().st_size == 0:
        raise BadModel(f"failed to load '{name}', {file} is missing or empty")
    if config.parameters.get("input_kind") != "text":
        return ServedModel(config, config.spec, file)
    text, tokenizer = _text(config, directory)
    return ServedModel(config, config.spec.model_copy(update={"text": text}), file, tokenizer)


def _with_steps(repository: Path, config: ModelConfig, within: tuple[str, ...]) -> ModelConfig:
    """Return an ensemble's config, checked against its steps' models; raises BadModel.

    Of a model that cannot be read nothing is known: it says itself why, and the ensemble waits.
    """

    def read(number: int, step: EnsembleStep) -> ModelSpec | None:
        where = f"failed to load '{within[-1]}', step {number}"
        if step.model in within:
            circle = " -> ".join([*within, step.model])
            raise EnsembleCircle(f"{where}: the ensemble is a step of itself, {circle}")
        if not MODEL_NAME.fullmatch(step.model) or not (repository / step.model).is_dir():
            raise BadModel(f"{where}: the repository has no model '{step.model}'")
        try:
            return read_model(repository, step.model, step.version or None, within=within).spec
        except EnsembleCircle:
            raise
        except BadModel:
            return None

    return replace(config, spec=with_models(config.spec, read))


def _text(config: ModelConfig, directory: Path) -> tuple[TextInput, bytes]:
    """Return the text parameters and the tokenizer file's content."""
    try:
        check_text_inputs(config.spec)
        filename = config.parameters.get("tokenizer", "tokenizer.json")
        tokenizer = read_text(directory / plain_name("tokenizer", filename)).encode()
        text = TextInput(
            tokenizer=asset_digest(tokenizer),
            max_length=token_limit(config.spec),
            truncate=config.parameters.get("truncate", "true") == "true",
        )
        return text, tokenizer
    except (OSError, ValueError) as error:
        raise BadModel(f"{directory}/config.pbtxt: {error}") from error
