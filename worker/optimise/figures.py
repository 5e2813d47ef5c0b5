"""Figures of how two models' answers to the same rows differ, and what may be expected of them.

largest difference    max |a - b|
relative difference   max |a - b| / (|a| + rms(a)), so that a zero among large values is none
cosine                of a row's values, the smallest and the mean over rows; "centred" ones
have the row's mean taken off, so that an offset proves nothing
agreement             the share of rows whose highest score is of the same class, as
worker/optimise/agreement.py has it
accuracy              the share of rows whose class is the label's
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from shared.datatypes import Array
from shared.drift.answers import FEWEST_CLASSES
from shared.drift.signals import TINY
from shared.model_spec import ModelSpec
from worker.optimise.agreement import Agreement

ONE_ROW = 5
"""How many times as far from 1 as the mean cosine the cosine of one row may be."""
FLAT = 1e-6
"""Of a row's largest value: differences below it are rounding."""


@dataclass(frozen=True)
class Tolerances:
    """What an answer may differ by and still be the same model's; a limit of None is none.

    `min_cosine` is of the mean over rows; one row alone may be `ONE_ROW` times as far from 1.
    `min_agreement` and `max_accuracy_drop` hold for real rows, the others for all.
    """

    max_relative: float | None = 1e-3
    min_cosine: float | None = 0.9999
    min_agreement: float | None = 0.99
    max_accuracy_drop: float | None = 0.01


BY_PRECISION = {
    "FP32": Tolerances(),
    "FP16": Tolerances(5e-2, 0.999, 0.98),
    "BF16": Tolerances(2e-1, 0.99, 0.96),
    "INT8": Tolerances(None, 0.99, 0.95),
}
"""What the samples differ by is from far below these (FP32) to beyond (INT8 of some): see
docs/optimise.md, which has what was measured. What is beyond is refused, unless labels decide."""


@dataclass
class Difference:
    """The differences of one output over all rows that were added."""

    rows: int = 0
    max_absolute: float = 0.0
    max_relative: float = 0.0
    min_cosine: float = 1.0
    min_centred_cosine: float | None = None
    mean_cosine: float = 1.0
    mean_centred_cosine: float | None = None
    unequal: int = 0
    """Elements that are no floats and differ, or are not finite in one of the two alone."""

    def as_json(self) -> dict[str, Any]:
        """Return the fields, infinity as a text."""
        return {key: _plain(value) for key, value in asdict(self).items()}


@dataclass
class Differences:
    """Adds up the differences of a candidate's answers from a reference's, batch by batch."""

    spec: ModelSpec
    differences: dict[str, Difference] = field(default_factory=dict)
    agreement: Agreement = field(default_factory=Agreement)

    def add(
        self,
        reference: Mapping[str, Array],
        candidate: Mapping[str, Array],
        labels: Array | None = None,
    ) -> None:
        """Add the answers to the same rows."""
        self.add_differences(reference, candidate)
        self.agreement.add(self.spec, reference, candidate, labels)

    def add_differences(
        self, reference: Mapping[str, Array], candidate: Mapping[str, Array]
    ) -> None:
        """Add how answers differ, and nothing to agreement and accuracy."""
        for output in self.spec.outputs:
            difference = self.differences.setdefault(output.name, Difference())
            _add(difference, reference[output.name], candidate[output.name], self.spec.batched)

    def faults(self, allowed: Tolerances, *, real: bool = True) -> list[str]:
        """Return a sentence for each tolerance that is missed, naming the output and both numbers.

        Agreement and accuracy count for `real` rows alone: on noise near ties are many.
        """
        found = [
            fault
            for name, difference in self.differences.items()
            for fault in _faults(name, difference, allowed)
        ]
        if not real:
            return found
        if allowed.min_agreement is not None:
            found += self.agreement.faults(allowed.min_agreement, allowed.min_cosine)
        drop, limit = self.agreement.accuracy_drop, allowed.max_accuracy_drop
        if limit is not None and drop is not None and drop > limit + TINY:
            found.append(f"accuracy falls by {drop:.4f}, expected at most {limit:g}")
        return found

    def as_json(self, allowed: Tolerances) -> dict[str, Any]:
        """Return all figures as JSON has them; what is a near tie follows from what is allowed."""
        found: dict[str, Any] = {
            "outputs": {name: each.as_json() for name, each in self.differences.items()}
        }
        if self.agreement.rows:
            found["agreement"] = self.agreement.as_json(allowed.min_cosine)
        return found


def _add(found: Difference, reference: Array, candidate: Array, batched: bool) -> None:
    count = len(reference) if batched and reference.ndim else 1
    if reference.shape != candidate.shape:
        found.max_absolute = found.max_relative = math.inf
        found.unequal += max(reference.size, candidate.size)
    elif reference.dtype.kind not in "fV":
        found.unequal += int(np.sum(_texts(reference) != _texts(candidate)))
    elif reference.size:
        _add_floats(found, _rows(reference, count), _rows(candidate, count))
    found.rows += count


def _texts(array: Array) -> Array:
    """Return texts as bytes, whatever a runtime keeps them in; all else as it is."""
    if array.dtype.kind not in "OSU":
        return array
    flat = [each if isinstance(each, bytes) else str(each).encode() for each in array.ravel()]
    return np.fromiter(flat, object, len(flat)).reshape(array.shape)


def _rows(array: Array, count: int) -> Array:
    return array.astype(np.float64).reshape(count, -1)


def _add_floats(found: Difference, a: Array, b: Array) -> None:
    """Add rows of numbers; what is not finite must be the same in both."""
    finite = np.isfinite(a) & np.isfinite(b)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    odd = int(np.sum(~finite & ~same))
    found.unequal += odd
    a, b = np.where(finite, a, 0.0), np.where(finite, b, 0.0)
    apart = np.abs(a - b)
    typical = math.sqrt(float(np.mean(a * a)))
    found.max_absolute = max(found.max_absolute, math.inf if odd else float(apart.max()))
    relative = float((apart / (np.abs(a) + typical + TINY)).max())
    found.max_relative = max(found.max_relative, math.inf if odd else relative)
    if a.shape[1] >= FEWEST_CLASSES:  # of a single number the cosine is its sign
        cosines = _cosines(a, b)
        found.min_cosine = min(found.min_cosine, float(cosines.min()))
        found.mean_cosine = _mean(found.mean_cosine, found.rows, cosines)
    if a.shape[1] > FEWEST_CLASSES:
        centred = _cosines(_centred(a), _centred(b))
        before = found.min_centred_cosine
        found.min_centred_cosine = min(1.0 if before is None else before, float(centred.min()))
        mean = found.mean_centred_cosine
        found.mean_centred_cosine = _mean(1.0 if mean is None else mean, found.rows, centred)


def _centred(rows: Array) -> Array:
    """Return rows without their means; of rows that are all one value nothing is left."""
    left: Array = rows - rows.mean(axis=1, keepdims=True)
    is_flat = np.abs(left).max(axis=1) <= FLAT * np.abs(rows).max(axis=1)
    return np.where(is_flat[:, None], 0.0, left)


def _mean(before: float, count: int, values: Array) -> float:
    return float((before * count + values.sum()) / (count + len(values)))


def _cosines(a: Array, b: Array) -> Array:
    """Return the cosine of each pair of rows; of two rows of zeros 1, of one such 0."""
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    both_zero = (np.linalg.norm(a, axis=1) < TINY) & (np.linalg.norm(b, axis=1) < TINY)
    cosines = (a * b).sum(axis=1) / np.where(lengths > 0, lengths, 1.0)
    found: Array = np.where(both_zero, 1.0, cosines)
    return found


def _faults(name: str, difference: Difference, allowed: Tolerances) -> list[str]:
    faults = []
    if difference.unequal:
        faults.append(f"output {name!r}: {difference.unequal} elements differ")
    relative = difference.max_relative
    if allowed.max_relative is not None and relative > allowed.max_relative:
        faults.append(
            f"output {name!r}: relative difference {relative:.3g}, expected at most "
            f"{allowed.max_relative:g}"
        )
    limit = allowed.min_cosine
    if limit is None:
        return faults
    one_row = 1 - ONE_ROW * (1 - limit)
    for of, ours, centred, least in (
        ("mean ", difference.mean_cosine, difference.mean_centred_cosine, limit),
        ("one row's ", difference.min_cosine, difference.min_centred_cosine, one_row),
    ):
        lowest = ours if centred is None else min(ours, centred)
        if lowest < least:
            faults.append(f"output {name!r}: {of}cosine {lowest:.6f}, expected at least {least:g}")
    return faults


def _plain(value: Any) -> Any:
    return "infinity" if isinstance(value, float) and math.isinf(value) else value
