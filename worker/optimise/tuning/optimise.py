"""`ferry optimise`: variants of a version made, judged, measured, and the best one added.

read the machine -> record the version's answers -> make and judge each variant
-> measure all that run -> choose -> add the chosen as a new version, with the report beside it
Each step that runs a library is in a process of its own, with a limit of time.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.errors import BadModel
from worker.optimise.subjects import loads_here
from worker.optimise.tuning.choice import (
    CHOSEN,
    FAILED,
    OK,
    Row,
    best_setup,
    choose,
    is_measured,
    most_together,
)
from worker.optimise.tuning.making import make_all
from worker.optimise.tuning.measuring import Arrangement, Candidate, measure
from worker.optimise.tuning.report import REPORT_FILES
from worker.optimise.tuning.run import OptimiseOrder, Run, Say, begin
from worker.optimise.tuning.variants import ONNX_BACKEND, ORIGINAL, VARIANTS, Variant
from worker.optimise.tuning.workshop import Clock
from worker.repository.adding.versions import Addition, NewVersion, add_versions

SHORTEST_MEASURING_SECONDS = 20.0


@dataclass(frozen=True)
class Optimised:
    """The outcome: the report, where it lies, and the new version, None where none is better."""

    report: Mapping[str, Any]
    report_directory: Path
    directory: Path | None


def optimise(
    order: OptimiseOrder,
    repository: Path,
    environ: Mapping[str, str],
    say: Say = print,
    variants: Sequence[Variant] = VARIANTS,
    before_adding: Callable[[], None] = lambda: None,
) -> Optimised:
    """Make a version faster, within what its accuracy may lose; raises BadModel in one sentence.

    Interrupted it keeps what was finished, and the same call goes on from there.
    """
    run = begin(order, repository, environ, say, variants)
    work = run.task.work
    try:
        make_all(run)
        _measure_all(run)
    except KeyboardInterrupt:
        run.keep_report(work, complete=False)
        say(f"interrupted: what is finished is in {work}, the same command goes on from there")
        raise
    chosen = choose(run.rows, order.objective)
    report = run.keep_report(work, complete=True)
    if chosen is not run.rows[0]:
        before_adding()
    directory = _added(run, chosen)
    where = directory or run.task.model.file.parent
    if directory is None:
        run.keep_report(where, complete=True)
    shutil.rmtree(work, ignore_errors=True)
    return Optimised(report, where, directory)


def _measure_all(run: Run) -> None:
    """Measure every variant that answers, also those that answer too badly to be chosen."""
    task = run.task
    candidates = [Candidate(ORIGINAL, task.model.file, task.model.config.backend)]
    by_name = {each.name: each for each in run.variants}
    for row in run.rows[1:]:
        if row.figures:
            variant = by_name[row.name]
            candidates.append(Candidate(row.name, run.file(variant), variant.backend))
    seconds = max(run.clock.left(), SHORTEST_MEASURING_SECONDS)
    run.say(f"measuring {len(candidates)} models for {seconds:.0f} s at most")
    found = measure(task, candidates, run.machine.cores, Clock(seconds))
    for row in run.rows:
        row.measured = found.get(row.name)
        if row.measured is not None and row.measured.fault and row.verdict == OK:
            row.verdict, row.reason = FAILED, f"not measured: {row.measured.fault}"
    if not is_measured(run.rows[0]):
        raise BadModel(f"{task.model.spec.key} cannot be measured: {run.rows[0].reason}")


def _added(run: Run, chosen: Row) -> Path | None:
    """Add the chosen variant as a new version with its report; None for the original."""
    if chosen is run.rows[0]:
        return None
    assert chosen.measured is not None and chosen.verdict == CHOSEN, "choose() looked at it"
    variant = next(each for each in run.variants if each.name == chosen.name)
    work = run.task.work
    files = {variant.filename: run.file(variant)}
    files |= {name: work / name for name in REPORT_FILES}
    setup = best_setup(chosen.measured, run.order.objective)
    together = most_together(chosen.measured, setup)
    addition = Addition(
        run.task.name,
        [NewVersion(files)],
        configure=lambda message: configure(message, variant, setup.arrangement, together),
    )
    return add_versions(run.task.repository, addition, loads_here(run.task.settings))[0]


def configure(
    message: Any, variant: Variant, arrangement: Arrangement, together: int | None
) -> None:
    """Set the instances, their threads and the preferred batch size in a ModelConfig.

    `max_batch_size` stays, for it is what clients may send; no more rows than the preferred size
    are batched where requests do not wait for company (docs/queue.md).
    """
    groups = list(message.instance_group)
    del message.instance_group[1:]
    group = message.instance_group[0] if groups else message.instance_group.add()
    group.count = arrangement.instances
    key = "intra_op_thread_count" if variant.backend == ONNX_BACKEND else "INTRA_OP_THREAD_COUNT"
    message.parameters[key].string_value = str(arrangement.threads)
    if message.max_batch_size > 0:
        message.dynamic_batching.SetInParent()
        del message.dynamic_batching.preferred_batch_size[:]
        if together is not None:
            message.dynamic_batching.preferred_batch_size.append(together)
