"""Adds versions that Ferry made itself to a model, new or there, with a config that fits them all.

A model has one config for all of its versions. Where they are of several formats it leaves
platform and backend out, and each version's file says by its content what runs it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from shared.errors import BadModel
from shared.names import MODEL_NAME
from worker.repository.adding.newcomer import CONFIG_FILE, entries, version_directories
from worker.repository.adding.staging import COPYING, place
from worker.repository.check import Trial
from worker.repository.config.formats import find_format
from worker.repository.model_config import completed
from worker.repository.models import read_model


@dataclass(frozen=True)
class NewVersion:
    """The files of a version to be added, by their names in its directory, the model's first."""

    files: Mapping[str, Path]

    @property
    def filename(self) -> str:
        """Return the name of the model's file."""
        return next(iter(self.files))


@dataclass(frozen=True)
class Addition:
    """Versions for one model, what changes in its config, and files that go beside them.

    `configure` changes a complete ModelConfig of a model that is there, an empty one of a new one.
    """

    name: str
    versions: Sequence[NewVersion]
    configure: Callable[[Any], None] = lambda _: None
    beside: Mapping[str, Path] = field(default_factory=dict)


def add_versions(repository: Path, addition: Addition, trial: Trial) -> list[Path]:
    """Add the versions and return their directories; all have their trial before one is there.

    Raises BadModel with the sentence that loading gives; then nothing was changed.
    """
    name = addition.name
    if not MODEL_NAME.fullmatch(name):
        raise BadModel(
            f"--name {name!r} must be letters, digits, '_', '.' and '-', and begin with none of "
            "the last two"
        )
    try:
        repository.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=COPYING, dir=repository) as scratch:
            stage = Path(scratch)
            added = _staged(repository / name, addition, stage)
            for version in added:
                _check(stage, name, version, trial)
            return _install(repository / name, stage / name, added)
    except OSError as error:  # nobody may write there, or it is full
        raise BadModel(f"{repository}: not written: {error.strerror or error}") from error


def _staged(model: Path, addition: Addition, stage: Path) -> list[str]:
    """Make the model's directory as it will be; return the new versions."""
    directory = stage / model.name
    directory.mkdir()
    there = {each.name for each in version_directories(model)}
    if model.is_dir() and any(model.iterdir()) and not there:
        raise BadModel(f"{model} is there and holds no model")
    for name, path in {**(entries(model) if there else {}), **addition.beside}.items():
        if not (directory / name).exists():
            place(path, directory / name)
    message = model_config_pb2.ModelConfig(name=model.name)
    if there:
        message = completed(model / CONFIG_FILE, max(there, key=int))
    before = type(message).FromString(message.SerializeToString())
    addition.configure(message)
    first = 1 + max(map(int, there), default=0)
    added = [str(first + index) for index in range(len(addition.versions))]
    known = _known_files(message, directory, there)
    for version, new in zip(added, addition.versions, strict=True):
        (directory / version).mkdir()
        for name, path in new.files.items():
            shutil.copyfile(path, directory / version / name)
    known |= {v: new.filename for v, new in zip(added, addition.versions, strict=True)}
    _choose_format(message, directory, known)
    if not there or message != before:  # else the operator's own file stays, with its comments
        (directory / CONFIG_FILE).unlink(missing_ok=True)
        config = text_format.MessageToString(message)
        (directory / CONFIG_FILE).write_text(config, encoding="utf-8")
    return added


def _known_files(message: Any, directory: Path, versions: set[str]) -> dict[str, str]:
    """Return the model's file of each version that can be read, as the config is now."""
    found = {}
    for version in versions:
        if (filename := _file_of(message, directory / version)) is not None:
            found[version] = filename
    return found


def _file_of(message: Any, version: Path) -> str | None:
    has_architecture = "architecture" in message.parameters
    try:
        return find_format(
            message.platform, message.backend, message.default_model_filename, has_architecture,
            version,
        ).filename  # fmt: skip
    except ValueError:
        return None


def _choose_format(message: Any, directory: Path, files: Mapping[str, str]) -> None:
    """Have the config find each version's own file; raises BadModel when none does.

    Tried in this order: as it is, without the format, without a name of the file as well.
    """
    tried = []
    for drop in ((), ("platform", "backend"), ("platform", "backend", "default_model_filename")):
        for name in drop:
            message.ClearField(name)
        wrong = [v for v, name in files.items() if _file_of(message, directory / v) != name]
        if not wrong:
            return
        tried = wrong
    raise BadModel(
        f"version {tried[0]} of '{directory.name}' holds several models, and no config for "
        f"versions of several formats can say that {files[tried[0]]} is meant: leave it alone there"
    )


def _check(stage: Path, name: str, version: str, trial: Trial) -> None:
    """Raise BadModel unless a version can be served."""
    model = read_model(stage, name, version)
    tried = trial(model)
    if tried.problem:
        raise BadModel(f"'{name}' version {version}, {model.file.name}: {tried.problem}")


def _install(model: Path, staged: Path, added: list[str]) -> list[Path]:
    """Move new versions to their place, and the config; raises BadModel, then nothing changed."""
    try:
        if not version_directories(model):
            os.rename(staged, model)
            return [model / version for version in added]
        before = (model / CONFIG_FILE).read_bytes() if (model / CONFIG_FILE).exists() else None
        if before != (staged / CONFIG_FILE).read_bytes():
            os.replace(staged / CONFIG_FILE, model / CONFIG_FILE)
        moved = []
        try:
            for version in added:
                os.rename(staged / version, model / version)
                moved.append(model / version)
        except BaseException:
            _undo(model, before, moved)
            raise
    except OSError as error:
        raise BadModel(f"{model}: not written: {error}") from error
    return moved


def _undo(model: Path, config: bytes | None, moved: list[Path]) -> None:
    for version in moved:
        shutil.rmtree(version, ignore_errors=True)
    if config is None:
        (model / CONFIG_FILE).unlink(missing_ok=True)
    else:
        (model / CONFIG_FILE).write_bytes(config)
