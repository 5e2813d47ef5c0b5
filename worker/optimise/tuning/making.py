"""Makes and judges the variants, each in processes of their own, within a share of the budget."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from shared.errors import BadModel
from worker.optimise.agreement import wilson
from worker.optimise.figures import Differences
from worker.optimise.tuning.choice import FAILED, NOT_APPLICABLE, NOT_TRIED, OK, Row
from worker.optimise.tuning.judging import judge, record_answers
from worker.optimise.tuning.run import Run, with_file
from worker.optimise.tuning.task import Task
from worker.optimise.tuning.variants import Variant
from worker.optimise.tuning.workshop import Clock, in_a_process

MAKING_SHARE, ONE_SHARE, ANSWER_SHARE = 0.55, 0.25, 0.2
"""Of the budget: for making and judging all variants, for one of them, for all answers to judge by.

What is left is for measuring."""
SHORTEST_LIMIT_SECONDS = 60.0
RECORD = "row.json"


def make_all(run: Run) -> None:
    """Make and judge each variant, as long as there is time for it."""
    budget, wanted = run.order.budget_seconds, _wanted(run)
    seconds = ANSWER_SHARE * budget / max(1, len(wanted))  # each variant is asked the same
    recorded = in_a_process(
        record_answers, run.task, run.machine.cores, seconds, seconds=max(60.0, budget)
    )
    if recorded.fault:
        raise BadModel(f"{run.task.model.spec.key} cannot be asked: {recorded.fault}")
    run.rows[0].figures = _own_figures(run, recorded.value)
    making = Clock(MAKING_SHARE * budget)
    for variant in wanted:
        row = _finished(run, variant) or _made(run, variant, recorded.value, making)
        run.rows.append(row)
        said = f": {row.reason}" if row.reason else ""
        run.say(f"{row.name}: {row.verdict}{said}")


def _wanted(run: Run) -> list[Variant]:
    """Return the variants to make: those of --only, and what they are made of."""
    only = set(run.order.only) or {each.name for each in run.variants}
    bases = {each.base for each in run.variants if each.name in only}
    return [each for each in run.variants if each.name in only | bases]


def _own_figures(run: Run, answers: Sequence[Any]) -> dict[str, Any]:
    """Return the accuracy of the version itself."""
    differences, labels = Differences(run.task.model.spec), run.task.rows.labels
    for each in answers:
        if each.is_real and labels is not None:
            differences.add(each.answer, each.answer, labels[each.numbers])
    found = differences.agreement
    if not found.labelled:
        return {}
    return {
        "rows": found.labelled,
        "accuracy": found.reference_right / found.labelled,
        "accuracy_interval": wilson(found.reference_right, found.labelled),
        "accuracy_drop": 0.0,
        "cosine": 1.0,
    }


def _finished(run: Run, variant: Variant) -> Row | None:
    """Return the row that an interrupted run kept, None when the variant is to be made."""
    try:
        kept = json.loads((run.file(variant).parent / RECORD).read_text(encoding="utf-8"))
        return Row(**kept)
    except (OSError, ValueError, TypeError):
        return None


def _made(run: Run, variant: Variant, answers: Sequence[Any], making: Clock) -> Row:
    row = Row(variant.name, variant.runtime, variant.precision, note=variant.note)
    row.command = _command(run, variant)
    base, reason = _base(run, variant)
    if reason := variant.why_not(run.machine, run.task) or reason or _not_needed(run, variant):
        row.verdict, row.reason = NOT_APPLICABLE, reason
        return row
    if not making.left():
        row.verdict, row.reason = NOT_TRIED, "the time for making variants was used up"
        return row
    directory = run.file(variant).parent
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    started = run.clock.left()
    _make_and_judge(run, variant, row, base, answers)
    row.made_seconds = started - run.clock.left()
    record = {key: value for key, value in asdict(row).items() if key != "measured"}
    (directory / RECORD).write_text(json.dumps(record, default=str), encoding="utf-8")
    return row


def _not_needed(run: Run, variant: Variant) -> str:
    """Return why a variant that comes after another is not tried; empty when it is."""
    before = next((each for each in run.rows if each.name == variant.after), None)
    if before is None or (before.verdict == FAILED and before.figures):
        return ""
    if before.verdict == OK:
        return f"{before.name} is within the limits already"
    return before.reason if before.verdict == NOT_APPLICABLE else f"{before.name} cannot be run"


def _base(run: Run, variant: Variant) -> tuple[Path, str]:
    """Return the file that a variant begins from, or why there is none."""
    if not variant.base or run.task.model.config.backend == variant.base:
        return run.task.model.file, ""
    row = next((each for each in run.rows if each.name == variant.base), None)
    base = next(each for each in run.variants if each.name == variant.base)
    if row is None or row.verdict != OK:
        return Path(), f"it is made from {variant.base}, which there is not"
    return run.file(base), ""


def _make_and_judge(
    run: Run, variant: Variant, row: Row, base: Path, answers: Sequence[Any]
) -> None:
    file = run.file(variant)
    limit = max(SHORTEST_LIMIT_SECONDS, ONE_SHARE * run.order.budget_seconds)
    made = in_a_process(_make, variant, run.task, base, file, seconds=limit)
    if not made.fault and not file.is_file():
        made = made._replace(fault="no file was written")
    if made.fault:
        row.verdict, row.reason = FAILED, f"not made: {made.fault}"
        return
    with_file(row, file)
    judged = in_a_process(
        judge, run.task, variant, file, answers, run.machine.cores, run.order.max_accuracy_drop,
        seconds=limit,
    )  # fmt: skip
    if judged.fault:
        row.verdict, row.reason = FAILED, f"not run: {judged.fault}"
        return
    row.figures, row.kernels = judged.value.figures, judged.value.kernels
    if judged.value.faults:
        row.verdict, row.reason = FAILED, "; ".join(judged.value.faults)


def _make(_pipe: Any, variant: Variant, task: Task, base: Path, file: Path) -> None:
    variant.make(task, base, file)


def _command(run: Run, variant: Variant) -> str:
    order = run.order
    words = ["ferry", "optimise", order.name, "--version", run.task.version]
    if order.data is not None:
        words += ["--data", str(order.data)]
    if order.label:
        words += ["--label", order.label]
    if order.original is not None:
        words += ["--original", order.original.path, "--arguments", order.original.arguments]
        weights = order.original.weights
        words += ["--weights", str(weights)] if weights else []
    words += ["--seed", str(order.seed), "--only", variant.name]
    return shlex.join(words)
