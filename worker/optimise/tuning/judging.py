"""Judges a variant by the version's own answers to the same rows, and proves its kernels."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from shared.datatypes import Array
from shared.model_spec import ModelSpec
from worker.optimise.figures import BY_PRECISION, Differences, Tolerances
from worker.optimise.rows import Batch
from worker.optimise.subjects import Subject
from worker.optimise.tuning.kernels import Kernels, onnx_kernels, torch_kernels
from worker.optimise.tuning.task import Task
from worker.optimise.tuning.variants import ONNX_BACKEND, Variant

FIRST_SIZES = (1, 2, 7)
"""The batches that are tried first, besides the largest: alone, together, an odd number."""
MOST_ANSWER_BYTES = 64 << 20
NOTHING_BUT_KIND = Tolerances(None, None, None, None)
"""Of made-up rows, where real ones say how a variant of low precision answers."""
BY_ACCURACY = Tolerances(None, None, 0.9, 0.0)


class AnsweredRows(NamedTuple):
    """Rows by their numbers, real or made-up, and what the version answered them."""

    is_real: bool
    numbers: list[int]
    answer: Mapping[str, Array]


class Judged(NamedTuple):
    """The findings on a variant: `faults` keep it from being chosen."""

    faults: Sequence[str]
    figures: Mapping[str, Any]
    kernels: str = ""


def record_answers(
    _pipe: Connection, task: Task, threads: int, seconds: float
) -> list[AnsweredRows]:
    """Ask the version all that variants are judged by, as far as time and memory suffice."""
    subject, started, held = task.original(threads), time.monotonic(), 0
    found: list[AnsweredRows] = []
    for is_real, numbers, batch in _questions(task):
        is_late = time.monotonic() - started > seconds or held > MOST_ANSWER_BYTES
        if is_late and len(numbers) == task.model.spec.batch_rows and found[-1].is_real == is_real:
            continue  # each size was tried before; made-up rows come last
        answer = subject.answer(batch)
        held += sum(array.nbytes for array in answer.values())
        found.append(AnsweredRows(is_real, numbers, answer))
    return found


def judge(
    _pipe: Connection, task: Task, variant: Variant, file: Path, reference: list[AnsweredRows],
    threads: int, max_accuracy_drop: float,
) -> Judged:  # fmt: skip
    """Ask a variant the same, and count its kernels."""
    subject, spec = task.subject(file, variant.backend, threads), task.model.spec
    real, made_up = Differences(spec), Differences(spec)
    for each in reference:
        rows = task.rows if each.is_real else task.made_up
        labels = None if rows.labels is None else rows.labels[each.numbers]
        differences = real if each.is_real else made_up
        differences.add(each.answer, subject.answer(rows.take(each.numbers)), labels)
    limits = _limits(variant, real, max_accuracy_drop)
    faults = _faults(variant, limits, real, made_up)
    kernels = _kernels(task, variant, file, subject)
    if kernels and kernels.low == 0 and variant.kernel_precision != "FP32":
        faults.append(f"none of its {kernels.layers} layers runs in {variant.precision} here")
    shown = real if real.differences else made_up
    figures = {"real": real.as_json(limits), "made_up": made_up.as_json(limits)}
    figures |= _summary(shown, limits)
    return Judged(faults, figures, str(kernels or variant.kernel_precision))


def _questions(task: Task) -> Iterator[tuple[bool, list[int], Batch]]:
    if task.data is not None:
        for numbers in _sized(task.checked(), task.model.spec):
            yield True, numbers, task.rows.take(numbers)
    made_up = task.made_up
    for numbers in _sized(list(range(made_up.count)), task.model.spec):
        yield False, numbers, made_up.take(numbers)


def _sized(numbers: list[int], spec: ModelSpec) -> Iterator[list[int]]:
    """Cut numbers into one batch of each size, and the rest into the largest."""
    most = spec.batch_rows
    sizes = [size for size in FIRST_SIZES if size < most]
    while numbers:
        size = sizes.pop(0) if sizes else most
        yield numbers[:size]
        numbers = numbers[size:]


def _limits(variant: Variant, real: Differences, max_accuracy_drop: float) -> Tolerances:
    """Return what is allowed: with labels accuracy decides of low precision."""
    allowed = BY_PRECISION["INT8" if variant.is_lossy else variant.precision]
    chosen = BY_ACCURACY if _is_low(variant) and real.agreement.labelled else allowed
    return replace(chosen, max_accuracy_drop=max_accuracy_drop)


def _is_low(variant: Variant) -> bool:
    return variant.precision != "FP32" or variant.is_lossy


def _faults(
    variant: Variant, limits: Tolerances, real: Differences, made_up: Differences
) -> list[str]:
    """Return what is beyond tolerance."""
    if not real.differences:
        return made_up.faults(limits, real=False)
    noise = NOTHING_BUT_KIND if _is_low(variant) else limits
    return [*real.faults(limits), *made_up.faults(noise, real=False)]


def _summary(shown: Differences, limits: Tolerances) -> dict[str, Any]:
    """Return the figures that the table shows: of real rows, where there are any."""
    means = [
        mean
        for each in shown.differences.values()
        for mean in (each.mean_cosine, each.mean_centred_cosine)
        if mean is not None
    ]
    found = shown.agreement.as_json(limits.min_cosine) if shown.agreement.rows else {}
    return {
        "rows": max(each.rows for each in shown.differences.values()),
        "cosine": min(means, default=None),
        "agreement": found.get("top1"),
        "agreement_interval": found.get("interval"),
        "near_ties": found.get("near_ties"),
        "decided_agreement": found.get("decided_top1"),
        "accuracy": found.get("candidate_accuracy"),
        "accuracy_interval": found.get("candidate_accuracy_interval"),
        "original_accuracy": found.get("reference_accuracy"),
        "accuracy_drop": found.get("accuracy_drop"),
    }


def _kernels(task: Task, variant: Variant, file: Path, subject: Subject) -> Kernels | None:
    """Count the layers; None where nobody can, which is torch's FP32."""
    if variant.backend == ONNX_BACKEND:
        return onnx_kernels(file, variant.kernel_precision)
    if variant.kernel_precision == "FP32":
        return None
    batch = task.rows.take(range(min(2, task.model.spec.batch_rows)))
    return torch_kernels(lambda: subject.answer(batch), variant.kernel_precision)
