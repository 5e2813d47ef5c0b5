"""`ferry models check`: prints the problems of a model repository, for CI."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path

from ferry.errors import EXIT_FAILED
from shared.settings import Settings
from worker.repository.check import CheckReport, check_repository, trial_in_a_process
from worker.repository.file_kinds import trusted_backends


def check_models(
    environ: Mapping[str, str], directory: Path | None, *, load: bool, as_json: bool
) -> int:
    """Print one line per problem and a summary; return 1 when there is a problem.

    `directory` None is FERRY_MODELS. With `load` every model is loaded and warmed up, each in a
    process of its own. Raises BadModel when there is no such directory.
    """
    settings = Settings.from_env(environ)
    trial = trial_in_a_process(environ) if load else None
    log = logging.getLogger("worker")
    level = log.level
    log.setLevel(logging.ERROR)  # its notes are printed here
    try:
        report = check_repository(
            directory or Path(settings.models), trial, trusted=trusted_backends(settings)
        )
    finally:
        log.setLevel(level)
    print(_as_json(report) if as_json else _as_text(report), flush=True)
    return EXIT_FAILED if report.problems else 0


def _as_json(report: CheckReport) -> str:
    return json.dumps(
        {
            "models": report.model_count,
            "versions": report.version_count,
            "problems": report.problems,
            "notes": report.notes,
        }
    )


def _as_text(report: CheckReport) -> str:
    lines = [*report.problems, *(f"note: {note}" for note in report.notes)]
    lines.append(
        f"{_counted(report.model_count, 'model')}, {_counted(report.version_count, 'version')}: "
        f"{_counted(len(report.problems), 'problem')}"
    )
    return "\n".join(lines)


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")
