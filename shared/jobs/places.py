"""Where jobs read and write: inside of the operator's directories, or in a job's own."""

from __future__ import annotations

import os
import re
from pathlib import Path

from shared.errors import BadRequest
from shared.jobs.orders import EdgeJob, PredictJob, checked_id
from shared.settings import Settings

UPLOAD = "input"
"""The name of an uploaded file, before its ending."""
UPLOAD_ENDING = re.compile(r"(?:\.[a-z0-9]{1,8})?")
ANSWERS_FILE = "answers.ndjson"


def job_folder(settings: Settings, job_id: str) -> Path:
    """Return a job's own directory, which need not be there; raises UnknownJob for no id."""
    return files_folder(settings) / checked_id(job_id)


def files_folder(settings: Settings) -> Path:
    """Return the directory of all jobs' own directories."""
    return Path(settings.job_files or Path(settings.state_dir) / "jobs").absolute()


def files_fault(settings: Settings) -> str:
    """Return why no job's files can be kept, "" if they can."""
    folder = files_folder(settings)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        return f"FERRY_JOB_FILES={str(folder)!r}: {error.strerror}"
    writable = os.access(folder, os.W_OK | os.X_OK)
    return "" if writable else f"FERRY_JOB_FILES={str(folder)!r}: it cannot be written"


def input_file(settings: Settings, field: str, name: str) -> Path:
    """Return what a job reads; raises BadRequest for what is not there, or leads out."""
    place = _inside("FERRY_JOB_INPUTS", settings.job_inputs, field, name)
    if not place.exists():
        raise BadRequest(f"field {field!r}: {name!r}: no such file in FERRY_JOB_INPUTS")
    return place


def data_files(settings: Settings, field: str, name: str) -> Path:
    """Return a file or folder whose pictures a job reads; raises BadRequest as `input_file`.

    So it does for a link in that folder, or in the file's own, which leads out: a picture may be
    one.
    """
    place, root = input_file(settings, field, name), Path(settings.job_inputs).resolve()
    for each in (place if place.is_dir() else place.parent).rglob("*"):
        if each.is_symlink() and not each.resolve().is_relative_to(root):
            raise BadRequest(
                f"field {field!r}: {each.name!r} beside {name!r} is a link that leads outside of "
                "FERRY_JOB_INPUTS"
            )
    return place


def output_file(settings: Settings, field: str, name: str, *beside: str) -> Path:
    """Return what a job writes, and names with what stands `beside`; raises BadRequest."""
    for ending in beside:
        _inside("FERRY_JOB_OUTPUTS", settings.job_outputs, field, name + ending)
    place = _inside("FERRY_JOB_OUTPUTS", settings.job_outputs, field, name)
    if place == Path(settings.job_outputs).resolve():
        raise BadRequest(f"field {field!r}: {name!r} is the directory itself, name a place in it")
    return place


def edge_directory(settings: Settings, order: EdgeJob) -> Path:
    """Return where a bundle goes, by the model's name where none is asked for.

    Raises BadRequest.
    """
    name = order.output or f"{order.model}-{order.version or 'latest'}-{order.to}"
    return output_file(settings, "output", name)


def answers_file(settings: Settings, job_id: str, order: PredictJob) -> Path:
    """Return where the answers of a bulk job go; raises BadRequest."""
    if order.output and settings.job_outputs:
        return output_file(settings, "output", order.output, ".partial", ".progress")
    ending = Path(order.output or ANSWERS_FILE).suffix.lower()
    return job_folder(settings, job_id) / f"answers{ending}"


def check_module(settings: Settings, module: str) -> None:
    """Raise BadRequest for a module that is not on the operator's list."""
    if module not in settings.job_modules.split(","):
        raise BadRequest(
            f"{module!r} is not in FERRY_JOB_MODULES: jobs import what the operator lists, no more"
        )


def _inside(variable: str, directory: str, field: str, name: str) -> Path:
    if not directory:
        raise BadRequest(f"field {field!r}: {variable} is not set, so no paths are taken")
    if not name or "\0" in name:
        raise BadRequest(f"field {field!r}: expected a path inside of {variable}")
    root = Path(directory).resolve()
    if not root.is_dir():
        raise BadRequest(f"field {field!r}: {variable}={directory!r} is no directory")
    try:
        place = (root / name).resolve()
        place.exists()
    except (OSError, RuntimeError, ValueError) as error:  # too long, links in a circle, no UTF-8
        reason = getattr(error, "strerror", None) or "it cannot be looked at"
        raise BadRequest(f"field {field!r}: {name!r}: {reason}") from error
    if not place.is_relative_to(root):
        raise BadRequest(f"field {field!r}: {name!r} lies outside of {variable}")
    return place
