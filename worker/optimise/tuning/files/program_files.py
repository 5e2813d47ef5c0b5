"""Variants of torch.export: the program itself, and AOTInductor's machine code of it."""

from __future__ import annotations

from pathlib import Path

from worker.instance.tensor_adapter import backend_spec
from worker.optimise.example import Example
from worker.optimise.export_formats import EXPORT_FORMATS, Job
from worker.optimise.tuning.files.torch_files import example_of, torch_module
from worker.optimise.tuning.task import Task


def exported(task: Task, file: Path) -> None:
    """Write the program; raises BadModel saying what torch.export cannot follow."""
    EXPORT_FORMATS["exported"].write(_job(task), file)


def compiled(task: Task, file: Path) -> None:
    """Write the program as machine code for this processor; raises BadModel saying why not."""
    EXPORT_FORMATS["aoti"].write(_job(task), file)


def _job(task: Task) -> Job:
    example = Example(torch_module(task), backend_spec(task.model.spec), (), ())
    return Job(example, tuple(example_of(task).values()))
