"""Checks a whole model repository without serving it, for all that a supervisor would refuse."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from shared.errors import BadModel
from shared.model_spec import ModelSpec
from shared.names import MODEL_NAME
from worker.repository.config.versions import wanted_versions
from worker.repository.file_kinds import RUN_CODE
from worker.repository.model_config import read_policy
from worker.repository.models import (
    ServedModel,
    is_model,
    is_set_aside,
    no_versions,
    read_model,
    version_numbers,
    why_left_out,
)  # fmt: skip

LONGEST_TRIAL_SECONDS = 600.0
LOADED, NOT_LOADED = "loaded", "refused"
"""A trial's own words, before what it says: of a version that can be served, or why it cannot."""


class Tried(NamedTuple):
    """The outcome of a trial: why a version could not be loaded, or what to know of it."""

    problem: str = ""
    note: str = ""


Trial = Callable[[ServedModel], Tried]
"""Loads a version and warms it up."""


@dataclass
class CheckReport:
    """The findings: `problems` keep a version from being served, `notes` do not."""

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    model_count: int = 0
    version_count: int = 0

    def add_problem(self, directory: Path, message: str) -> None:
        """Keep a message once, with the file that it is about in front."""
        message = message.removeprefix(f"failed to load '{directory.name}', ")
        message = " ".join(message.split())
        if not message.startswith(str(directory)):
            message = f"{directory / 'config.pbtxt'}: {message}"
        if message not in self.problems:
            self.problems.append(message)

    def add_note(self, message: str) -> None:
        """Keep a message once."""
        if message not in self.notes:
            self.notes.append(message)


def check_repository(
    repository: Path, trial: Trial | None = None, *, trusted: Collection[str] = RUN_CODE
) -> CheckReport:
    """Read every version of every model; with `trial`, have each that can be read tried as well.

    Files that run code are problems, but for those of `trusted` backends. Raises BadModel when
    there is no such repository.
    """
    if not repository.is_dir():
        raise BadModel(f"{repository}: no such model repository")
    report = CheckReport()
    for directory in sorted(repository.iterdir()):
        if not os.path.isfile(directory) and not is_set_aside(directory):
            _check_model(directory, report, trial, trusted)
    return report


def _check_model(
    directory: Path, report: CheckReport, trial: Trial | None, trusted: Collection[str]
) -> None:
    if not MODEL_NAME.fullmatch(directory.name) or not is_model(directory):
        report.add_problem(directory, f"{directory}: {why_left_out(directory)}")
        return
    report.model_count += 1
    for name, why in sorted(no_versions(directory).items()):
        report.add_note(f"{directory / name}: {why}")
    try:
        versions = version_numbers(directory)
        policy = read_policy(directory / "config.pbtxt")
    except BadModel as error:
        report.add_problem(directory, str(error))
        return
    for version in set(wanted_versions(policy, versions)) - set(versions):
        report.add_problem(
            directory, f"version_policy.specific.versions: {version} is not among {versions}"
        )
    for version in versions:
        report.version_count += 1
        _check_version(directory, version, report, trial, trusted)


def _check_version(
    directory: Path,
    version: str,
    report: CheckReport,
    trial: Trial | None,
    trusted: Collection[str],
) -> None:
    try:
        model = read_model(directory.parent, directory.name, version, trusted=trusted)
    except BadModel as error:
        report.add_problem(directory, str(error))
        return
    for note in model.config.notes + tuple(_label_notes(model.spec)):
        report.add_note(f"{directory / 'config.pbtxt'}: {note}")
    if model.asset is not None and (wrong := _tokenizer_problem(model.asset)):
        name = model.config.parameters.get("tokenizer", "tokenizer.json")
        report.add_problem(directory, f"{directory / name}: {wrong}")
    tried = trial(model) if trial is not None else Tried()
    if tried.problem:
        report.add_problem(directory, f"{model.file}: {tried.problem}")
    if tried.note:
        report.add_note(f"{model.file}: {tried.note}")


def _label_notes(spec: ModelSpec) -> list[str]:
    return [
        f"output[{output.name}].label_filename has {len(output.labels)} labels for "
        f"{output.dims[-1]} classes"
        for output in spec.outputs
        if output.labels and output.dims[-1] > 1 and len(output.labels) != output.dims[-1]
    ] + [
        f"output[{output.name}].label_filename has an empty line {index + 1}: class {index} is "
        "called by its number"
        for output in spec.outputs
        for index, label in enumerate(output.labels)
        if not label
    ]


def _tokenizer_problem(content: bytes) -> str:
    """Return the fault of a tokenizer file, an empty string when it has none."""
    try:
        from tokenizers import Tokenizer  # noqa: PLC0415  the API's package, not the worker's
    except ModuleNotFoundError:
        return ""
    try:
        Tokenizer.from_buffer(content)
    except Exception as error:  # a border: the library raises nothing narrower
        return f"no tokenizer of the `tokenizers` library: {error}"
    return ""


def trial_in_a_process(environ: Mapping[str, str]) -> Trial:
    """Return a trial that loads and warms up each version in a process of its own."""

    def run(model: ServedModel) -> Tried:
        if model.spec.steps:
            return Tried()  # an ensemble has no file, and its steps' models are tried themselves
        directory = model.file.parent.parent
        command = [
            sys.executable,
            "-m",
            "worker.instance.trials.trial_load",
            str(directory.parent),
            directory.name,
        ]
        try:
            done = subprocess.run(
                [*command, model.spec.version],
                env=process_environment(environ),
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                timeout=LONGEST_TRIAL_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            return _tried(error.stdout, f"not loaded within {LONGEST_TRIAL_SECONDS:.0f} s")
        failed = f"its process ended with exit code {done.returncode}" if done.returncode else ""
        return _tried(done.stdout, failed)

    return run


def _tried(output: bytes | None, failed: str) -> Tried:
    """Return what a trial's output means, and how its process failed, if it did."""
    lines = (output or b"").decode(errors="replace").strip().splitlines()
    if NOT_LOADED in lines:
        return Tried(problem=_behind(NOT_LOADED, lines))
    if LOADED not in lines:
        return Tried(problem=failed)
    said = _behind(LOADED, lines)
    return Tried(note=said or (failed and f"served cold: {failed} when it was warmed up"))


def _behind(word: str, lines: list[str]) -> str:
    return "\n".join(lines[lines.index(word) + 1 :])


def process_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return `environ` for a child process in any directory that imports our modules."""
    root, given = str(Path(__file__).resolve().parents[2]), environ.get("PYTHONPATH", "")
    return {**environ, "PYTHONPATH": os.pathsep.join([root, given] if given else [root])}
