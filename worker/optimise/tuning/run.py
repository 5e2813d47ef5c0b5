"""An optimisation under way: what is wanted, on what, and what is known so far."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from shared.errors import BadModel
from shared.settings import Settings
from worker.optimise.cache import cache_directory
from worker.optimise.subjects import Original, check_held
from worker.optimise.tuning.choice import Row
from worker.optimise.tuning.machine import Machine, this_machine
from worker.optimise.tuning.report import REPORT_FILES, as_json, as_markdown, as_text, versions
from worker.optimise.tuning.report_page import as_page
from worker.optimise.tuning.task import Task
from worker.optimise.tuning.variants import ONNX_BACKEND, ORIGINAL, TORCH_BACKENDS, Variant
from worker.optimise.tuning.workshop import Clock, in_a_process

Say = Callable[[str], None]
MAKING_SECONDS = 300.0
"""The longest that the operator's own code may take to make the original."""


@dataclass(frozen=True)
class OptimiseOrder:
    """The options of `ferry optimise`."""

    name: str
    version: str = ""
    data: Path | None = None
    label: str = ""
    max_accuracy_drop: float = 0.01
    objective: str = "throughput"
    budget_seconds: float = 600.0
    only: Sequence[str] = ()
    seed: int = 0
    original: Original | None = None

    def share_after(self, seconds: float) -> float:
        """Return the part that is done by then, from 0 to 1.

        Behind the budget remains the last tenth: loading and adding the chosen one.
        """
        return 0.9 * min(seconds / self.budget_seconds, 1.0)


@dataclass
class Run:
    """What is wanted, the time that is left, and a row for each variant so far."""

    order: OptimiseOrder
    task: Task
    machine: Machine
    clock: Clock
    say: Say
    variants: Sequence[Variant]
    rows: list[Row] = field(default_factory=list)

    def file(self, variant: Variant) -> Path:
        """Return where a variant's file is made."""
        return self.task.work / variant.name / variant.filename

    def report(self, *, complete: bool) -> dict[str, Any]:
        """Return report.json as far as it is known."""
        settings = {
            "objective": self.order.objective,
            "max_accuracy_drop": self.order.max_accuracy_drop,
            "budget_seconds": self.order.budget_seconds,
            "only": list(self.order.only),
        }
        return as_json(self.task, self.machine, self.rows, settings, complete)

    def keep_report(self, directory: Path, *, complete: bool) -> dict[str, Any]:
        """Write the three files of the report, each whole; return report.json."""
        report = self.report(complete=complete)
        directory.mkdir(parents=True, exist_ok=True)
        texts = (as_text(report), as_markdown(report), as_page(report))
        for name, text in zip(REPORT_FILES, texts, strict=True):
            unfinished = directory / f".{name}"
            unfinished.write_text(text, encoding="utf-8")
            os.replace(unfinished, directory / name)
        return report


def begin(
    order: OptimiseOrder,
    repository: Path,
    environ: Mapping[str, str],
    say: Say,
    variants: Sequence[Variant],
) -> Run:
    """Read what is to be optimised; raises BadModel in one sentence, then nothing was made."""
    settings, machine = Settings.from_env(environ), this_machine()
    known = [each.name for each in variants]
    for name in order.only:
        if name not in known:
            raise BadModel(f"--only {name}: expected one of {', '.join(known)}")
    check_held(repository, order.name, order.version)
    unplaced = Task(
        repository, order.name, order.version, settings, Path(), order.data, order.label,
        order.seed, order.original,
    )  # fmt: skip
    model = unplaced.model
    if model.spec.steps:
        raise BadModel(f"{model.spec.key} is an ensemble: optimise the models of its steps")
    if model.config.backend not in (*TORCH_BACKENDS, ONNX_BACKEND):
        raise BadModel(
            f"{model.spec.key} is a model of {model.config.backend}: optimise takes those of torch "
            "and ONNX files"
        )
    _ = unplaced.rows  # a fault of the data is said before anything is made
    if order.original is not None:
        made = in_a_process(_make, order.original, seconds=MAKING_SECONDS)
        if made.fault:
            raise BadModel(f"--original {order.original.path}: {made.fault}")
    key = work_key(order, unplaced, machine)
    work = cache_directory(environ) / "optimise" / f"{order.name}-{model.spec.version}-{key[:12]}"
    work.mkdir(parents=True, exist_ok=True)
    task = replace(unplaced, version=model.spec.version, work=work)
    run = Run(order, task, machine, Clock(order.budget_seconds), say, variants)
    run.rows.append(_original_row(run))
    return run


def _make(_pipe: Any, original: Original) -> None:
    original.make()


def work_key(order: OptimiseOrder, task: Task, machine: Machine) -> str:
    """Return a digest of all that decides what is made, so that nothing older is gone on from."""
    data = order.data.absolute() if order.data else None
    found = [data] if data and data.is_file() else sorted(data.rglob("*")) if data else []
    listed = [(str(each), each.stat().st_size, each.stat().st_mtime_ns) for each in found if each]
    original = order.original
    weights = original.weights if original else None
    deciding = [
        original and [original.path, original.arguments, weights and _digest(weights)],
        task.settings.allow_machine_code, _digest(task.model.file),
        task.model.spec.model_dump(mode="json"), listed, order.label, order.seed,
        order.max_accuracy_drop, versions(), sorted(machine.flags), machine.cores,
    ]  # fmt: skip
    text = json.dumps(deciding, sort_keys=True)  # a config's maps are in no order
    return hashlib.sha256(text.encode()).hexdigest()


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _original_row(run: Run) -> Row:
    model = run.task.model
    words = "ONNX Runtime" if model.config.backend == ONNX_BACKEND else "torch"
    return with_file(Row(ORIGINAL, words, "FP32", kernels="FP32"), model.file)


def with_file(row: Row, file: Path) -> Row:
    """Note the size and the digest of a row's file."""
    content = file.read_bytes()
    row.size_bytes = len(content)
    row.compressed_bytes = len(gzip.compress(content, compresslevel=1))
    row.digest = hashlib.sha256(content).hexdigest()
    return row
