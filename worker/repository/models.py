"""Finds a repository's models in Triton's layout: <name>/config.pbtxt and <name>/<version>/."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from shared.errors import BadModel
from shared.model_spec import EnsembleStep, ModelSpec, TextInput
from shared.names import MODEL_NAME, VERSION
from shared.registry.registry import asset_digest
from worker.repository.config.ensemble import EnsembleCircle, with_models
from worker.repository.config.formats import holds_model_file
from worker.repository.config.parameters import is_monitored, plain_name
from worker.repository.config.text import IDS, check_text_inputs, token_limit
from worker.repository.config.versions import wanted_versions
from worker.repository.file_kinds import RUN_CODE
from worker.repository.model_config import ModelConfig, read_config, read_policy
from worker.repository.tokens import read_tokenizer
from worker.repository.verified import reference_in

log = logging.getLogger(__name__)

REPORT_PAGE = "report.html"
LARGEST_PAGE = 1 << 20


@dataclass(frozen=True)
class ServedModel:
    """One version of a model that is to be served: its spec, its file, its tokenizer."""

    config: ModelConfig
    spec: ModelSpec
    file: Path
    asset: bytes | None = None

    def report(self) -> bytes | None:
        """Return the page that `ferry optimise` left beside the version, None without one."""
        try:
            page = (self.file.parent / REPORT_PAGE).read_bytes()
        except OSError:
            return None
        return page if len(page) <= LARGEST_PAGE else None

    def reference(self) -> str | None:
        """Return what drift is measured from, as the registry keeps it; None without one."""
        found = reference_in(self.file.parent) if is_monitored(self.spec.parameters) else None
        return found.encode() if found else None

    def with_revision(self, number: int) -> ServedModel:
        """Return the same content under the name of its revision."""
        spec = self.spec.model_copy(update={"revision": number})
        return replace(self, spec=spec)


def model_names(repository: Path) -> list[str]:
    """Return the names of the repository's model directories.

    Raises BadModel when there is no repository, or none that this user may read.
    """
    if not os.path.isdir(repository):
        raise BadModel(f"{repository}: no such model repository")
    try:
        entries = list(repository.iterdir())
    except OSError as error:
        raise BadModel(
            f"{repository}: the model repository cannot be read by user {os.geteuid()}: "
            f"{error.strerror}"
        ) from error
    return sorted(
        entry.name for entry in entries if MODEL_NAME.fullmatch(entry.name) and is_model(entry)
    )


def is_model(directory: Path) -> bool:
    """Tell whether a directory has a `config.pbtxt`, or a version with a file named as a model."""
    # subtle: os.path, for pathlib raises where nobody may look, and that is one directory's fault.
    return os.path.isfile(directory / "config.pbtxt") or any(
        VERSION.fullmatch(version.name) and holds_model_file(version)
        for version in directory.glob("*/")
    )


def left_out(repository: Path, models: Collection[str]) -> dict[str, str]:
    """Return why each directory besides `models` is not taken for one, by its name.

    So for a link that leads nowhere. Raises OSError when the repository is not there.
    """
    entries = (each for each in repository.iterdir() if each.name not in models)
    return {each.name: why_left_out(each) for each in entries if not os.path.isfile(each)}


def why_left_out(directory: Path) -> str:
    """Return why a directory is not taken for a model."""
    if is_set_aside(directory):
        return "its name says that it holds no model"
    if not MODEL_NAME.fullmatch(directory.name):
        return (
            f"the name {directory.name!r} must be letters, digits, '_', '.' and '-', "
            "and begin with none of the last two"
        )
    try:
        os.listdir(directory)
    except OSError as error:
        return error.strerror or str(error)
    return "no config.pbtxt, and no version directory with a model file in it"


def is_set_aside(directory: Path) -> bool:
    """Tell whether a directory is left out on purpose: hidden, Python's, or the file system's."""
    return directory.name.startswith((".", "__")) or directory.name == "lost+found"


def no_versions(directory: Path) -> dict[str, str]:
    """Return why directories of a model that look like versions are none, by their names."""
    return {
        each.name: "no version, those are numbers from 1 without leading zeros"
        for each in directory.iterdir()
        if not VERSION.fullmatch(each.name) and not is_set_aside(each) and _holds_a_model(each)
    }


def _holds_a_model(directory: Path) -> bool:
    is_number = directory.name.isdigit() and directory.is_dir()
    return is_number or holds_model_file(directory)


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
    *,
    trusted: Collection[str] = RUN_CODE,
) -> ServedModel:
    """Read one version of a model, its highest unless one is named.

    `override` is a configuration as JSON that counts instead of the repository's, `within` are the
    ensembles that it is a step of. A file that runs code is refused, but for `trusted` backends.

    Raises BadModel naming the file that is missing or wrong.
    """
    directory = repository / name
    versions = version_numbers(directory)
    version = version or versions[-1]
    config = read_config(directory / "config.pbtxt", version, override, trusted=trusted)
    for note in config.notes:
        log.warning("%s/config.pbtxt: %s", directory, note)
    file = directory / version / config.filename
    if config.spec.steps:
        config = _with_steps(repository, config, (*within, name))
    elif not file.is_file() or file.stat().st_size == 0:
        raise BadModel(f"failed to load '{name}', {file} is missing or empty")
    if config.parameters.get("input_kind") != "text":
        return ServedModel(config, _with_padding(config.spec, directory), file)
    spec, tokenizer = _text(config, directory)
    return ServedModel(config, spec, file, tokenizer)


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


def _with_padding(spec: ModelSpec, directory: Path) -> ModelSpec:
    """Return the spec of a model whose clients send ids, which its tokenizer's files may pad."""
    file = directory / "tokenizer.json"
    if IDS not in spec.ragged_names or not file.is_file():
        return spec
    return spec.with_changes(inputs=read_tokenizer(file, spec.inputs)[2])


def _text(config: ModelConfig, directory: Path) -> tuple[ModelSpec, bytes]:
    """Return the spec of a model that takes texts, and the tokenizer file's content."""
    try:
        check_text_inputs(config.spec)
        filename = config.parameters.get("tokenizer", "tokenizer.json")
        file = directory / plain_name("tokenizer", filename)
        tokenizer, rules, inputs = read_tokenizer(file, config.spec.inputs)
        if not rules.splits:
            raise BadModel(f'{file}: the tokenizer has no "model", which makes tokens of texts')
        text = TextInput(
            tokenizer=asset_digest(tokenizer.encode()),
            max_length=token_limit(config.spec, rules.max_length),
            truncate=config.parameters.get("truncate", "true") == "true",
            pad_multiple=rules.pad_multiple,
            cut_left=rules.cut_left,
        )
    except (OSError, ValueError) as error:
        raise BadModel(f"{directory}/config.pbtxt: {error}") from error
    return config.spec.with_changes(text=text, inputs=inputs), tokenizer.encode()
