"""Tries newcomers and copies them into a repository, each as a whole or not at all.

A newcomer is staged first: a model directory elsewhere, with links in the files' place. There its
config is completed, and a process loads it as it would be served. Only then is anything copied, to
a directory that servers do not see, and renamed to its place.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf import text_format

from shared.errors import BadModel
from shared.model_spec import ModelSpec
from shared.names import VERSION
from worker.repository.adding.newcomer import (
    CONFIG_FILE,
    LABEL_FILE,
    Newcomer,
    entries,
    version_directories,
)  # fmt: skip
from worker.repository.adding.wishes import conflicts, write_wishes
from worker.repository.check import LONGEST_TRIAL_SECONDS, process_environment, trial_in_a_process
from worker.repository.config.completion import DESCRIBED, completes_itself
from worker.repository.config.formats import BY_BACKEND, find_format
from worker.repository.model_config import completed, read_message
from worker.repository.models import read_model

PROBED = {"torchscript", "torch_aoti", "torch_state_dict", "torch_pickle", "python"}
"""The backends whose files do not say what goes in and out: such a model is asked itself."""
EXTERNAL_WEIGHTS = re.compile(r'External data path: "([^"]+)"')
"""The name of the file of weights that ONNX Runtime misses."""
COPYING = ".copying-"
"""How directories begin that are not complete: no model's name begins with a full stop."""


@dataclass(frozen=True)
class Settled:
    """A newcomer that can be served: its staged directory, and what people should know of it."""

    newcomer: Newcomer
    directory: Path
    spec: ModelSpec
    notes: list[str] = field(default_factory=list)


def settle(new: Newcomer, repository: Path, stage: Path, environ: Mapping[str, str]) -> Settled:
    """Complete a newcomer's config and try it, by links to its files below the directory `stage`.

    Raises BadModel with the sentence that loading gives, or naming the option that is missing.
    """
    directory = stage / new.name
    try:
        _link(new, repository / new.name, directory)
        notes = _complete(new, repository, directory, environ)
        model = read_model(stage, new.name, new.version)
        tried = trial_in_a_process(environ)(model)
        if tried.problem:
            raise BadModel(f"{model.file}: {tried.problem}")
        notes += [tried.note] if tried.note else []
    except (BadModel, OSError) as error:
        raise BadModel(_as_named(str(error), new, repository, directory)) from error
    return Settled(new, directory, model.spec, notes)


def _as_named(message: str, new: Newcomer, repository: Path, directory: Path) -> str:
    """Return a message about staged files with the names that people know them by."""
    weights = EXTERNAL_WEIGHTS.search(message)
    if weights and not (new.source.parent / weights[1]).exists() and not new.source.is_dir():
        return f"{new.source}: its weights are in {weights[1]}, which is not there: bring both"
    message = message.removeprefix(f"failed to load '{new.name}', ")
    message = message.replace(str(directory / new.version / new.filename), str(new.source))
    if not new.source.is_dir():
        message = re.sub(
            rf"(?<![\w./-]){re.escape(new.filename)}\b", lambda _: new.source.name, message
        )
    message = message.replace(str(directory), str(repository / new.name))
    if not new.exists and CONFIG_FILE not in new.beside:
        message = _without_config(message, repository / new.name / CONFIG_FILE)
    if str(new.source) not in message:
        message = f"{new.source}: {message}"
    if new.exists:
        message += (
            f" (it would be version {new.version} of the model '{new.name}' that "
            f"{repository / new.name} holds: --name gives it another)"
        )
    return message


def _without_config(message: str, config: Path) -> str:
    """Return a message about a config that nobody wrote in the words of the command's options."""
    message = re.sub(rf"{re.escape(str(config))}(?: \(missing\))?: ", "", message)
    message = re.sub(r"(?:input and output|input|output) left out, and ", "", message)
    message = message.replace(" or in the model's directory", "")
    return message.replace("write input and output", "say --input NAME:DIMS --output NAME:DIMS")


def _link(new: Newcomer, model: Path, directory: Path) -> None:
    """Make the staged directory: the version's files, and what lies in the model's own."""
    version = directory / new.version
    version.mkdir(parents=True)
    beside = {**entries(model), **new.beside} if new.exists else dict(new.beside)
    for name, path in beside.items():
        if not (path.is_dir() and name.isdigit()):
            place(path, directory / name)
    for name, path in new.files.items():
        place(path, version / name)


def place(path: Path, link: Path) -> None:
    """Link to a file or directory, but copy a config, which is completed where it lies."""
    link.parent.mkdir(parents=True, exist_ok=True)
    if path.name == CONFIG_FILE:  # it is completed there
        shutil.copyfile(path, link)
    else:
        link.symlink_to(path.resolve())


def _complete(
    new: Newcomer, repository: Path, directory: Path, environ: Mapping[str, str]
) -> list[str]:
    """Write the staged config as far as file, wishes and the model itself tell it."""
    config = directory / CONFIG_FILE
    if new.exists:
        check_fits(new, repository / new.name)
        _check_format(new, directory)
        return []
    message = read_message(config)
    if not config.exists():
        known = BY_BACKEND[new.kind.backend]
        message.platform = known.platform
        message.backend = "" if known.platform else known.triton_backend
        if new.filename not in known.files:
            message.default_model_filename = new.filename
    message.name = new.name
    described = new.kind.backend in DESCRIBED
    if described:
        message.max_batch_size = new.wishes.max_batch_size or message.max_batch_size
        config.write_text(text_format.MessageToString(message))
        message = completed(config, new.version)
    notes = write_wishes(message, new.wishes)
    config.write_text(text_format.MessageToString(message))
    is_said = message.input and message.output and new.wishes.max_batch_size is not None
    by_itself = new.kind.backend == "python" and completes_itself(new.file)
    if new.kind.backend in PROBED and not is_said and not by_itself:
        notes += _learn(new, directory, environ)
    elif not described:
        config.write_text(text_format.MessageToString(completed(config, new.version)))
    message = read_message(config)
    if new.wishes.labels is not None:
        message.output[0].label_filename = LABEL_FILE
    config.write_text(text_format.MessageToString(message))
    return notes


def check_fits(new: Newcomer, model: Path) -> None:
    """Raise BadModel when the options differ from the config of a model that is there."""
    versions = [each.name for each in version_directories(model) if VERSION.fullmatch(each.name)]
    if not versions and not (model / CONFIG_FILE).exists():
        raise BadModel(f"{model} is there and holds no model")
    if new.beside.keys() & {LABEL_FILE} and (
        not (model / LABEL_FILE).is_file()
        or (model / LABEL_FILE).read_bytes() != new.beside[LABEL_FILE].read_bytes()
    ):
        raise BadModel(f"--labels differs from the labels of {model}")
    there = completed(model / CONFIG_FILE, max(versions, key=int, default=new.version))
    if said := conflicts(there, new.wishes):
        raise BadModel(f"{said} in {model / CONFIG_FILE}")


def _check_format(new: Newcomer, directory: Path) -> None:
    """Raise BadModel when the config of a model that is there is another format's."""
    message = read_message(directory / CONFIG_FILE)
    try:
        found = find_format(
            message.platform, message.backend, message.default_model_filename,
            "architecture" in message.parameters, directory / new.version,
        )  # fmt: skip
        fits = found.filename == new.filename and found.format.backend == new.kind.backend
    except ValueError:  # its content is of none of the formats that the config leaves open
        fits = False
    if not fits:
        raise BadModel(
            f"{new.source} is {new.kind.what}, and the model has the format "
            f"{message.platform or message.backend}"
        )


def _learn(new: Newcomer, directory: Path, environ: Mapping[str, str]) -> list[str]:
    """Have the model run once for its outputs; raises BadModel naming the option to give."""
    asked = {
        "max_batch_size": new.wishes.max_batch_size,
        "untyped": [each.name for each in new.wishes.inputs if not each.datatype],
    }
    learned = _first_run([str(directory.parent), new.name, new.version, json.dumps(asked)], environ)
    if "problem" in learned:
        raise BadModel(f"{directory / new.version / new.filename}: {learned['problem']}")
    if (names := learned.get("arguments")) is not None:
        options = " ".join(f"--input {name}:DIMS" for name in names) or "--input NAME:DIMS"
        taken = f", and forward takes {', '.join(names)}" if names else ""
        what = new.kind.what.partition(",")[0]
        raise BadModel(
            f"{new.source}: {what} does not say the shape of what goes in{taken}: say it "
            f"with {options}, where DIMS are those of one row, such as 4 or 3x224x224"
        )
    (directory / CONFIG_FILE).write_text(learned["config"])
    notes: list[str] = learned["notes"]
    return notes


def _first_run(arguments: list[str], environ: Mapping[str, str]) -> dict[str, Any]:
    """Return what `worker.instance.trials.first_run` learns."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "worker.instance.trials.first_run", *arguments],
            env=process_environment(environ),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=LONGEST_TRIAL_SECONDS,
            check=False,
        )
        found: dict[str, Any] = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        return {"problem": f"it did not run once within {LONGEST_TRIAL_SECONDS:.0f} s"}
    except ValueError:
        return {"problem": f"its process ended with exit code {done.returncode}"}
    return found


def install(settled: Settled, repository: Path) -> Path:
    """Copy a settled newcomer into the repository; return its version's directory.

    Raises BadModel when it cannot be copied; then nothing of it is there.
    """
    new = settled.newcomer
    model, part = repository / new.name, Path()
    if new.exists:
        part = Path(new.version)
    try:
        repository.mkdir(parents=True, exist_ok=True)
        with (
            _cleared(repository),
            tempfile.TemporaryDirectory(prefix=COPYING, dir=repository) as scratch,
        ):
            copy = Path(scratch) / "model"
            shutil.copytree(settled.directory / part, copy)
            os.rename(copy, model / part)
    except OSError as error:
        raise BadModel(f"{new.source}: not copied to {model / new.version}: {error}") from error
    return model / new.version


@contextmanager
def _cleared(repository: Path) -> Iterator[None]:
    """Remove what copies that were killed have left, unless one is under way; then copy.

    Each copy holds a shared lock on the repository's directory, which ends with its process.
    """
    directory = os.open(repository, os.O_RDONLY)
    try:
        with suppress(OSError):  # another one copies, or this file system has no locks
            fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for left in repository.glob(f"{COPYING}*"):
                shutil.rmtree(left)
        with suppress(OSError):
            fcntl.flock(directory, fcntl.LOCK_SH)
        yield
    finally:
        os.close(directory)
