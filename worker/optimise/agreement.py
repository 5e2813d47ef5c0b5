"""Counts for how many rows two models' answers are of the same class.

A row decides when the reference's best score is ahead of the next by more than the scores may
differ by. A near tie is none: that another of the tied classes wins there says nothing. One that
wins though it was further behind than that is another class on any row.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from shared.datatypes import Array
from shared.drift.answers import classes, scored_output, scores_of
from shared.model_spec import ModelSpec

WILSON_Z = 1.959963984540054
"""Of 95 % of the normal distribution."""
ONE_SIDED_Z = 1.6448536269514722
"""Of the normal distribution, for 5 %: a lead that such differences turn less often decides."""
SHARE_ROUNDING = 1e-9
LOOSEST_TIE = 0.99
"""The least cosine that near ties follow: whoever allows lower ones does not mean more of them."""


def wilson(hits: int, count: int) -> tuple[float, float]:
    """Return the Wilson score interval of a share, at 95 %.

    Source: E. B. Wilson, Probable inference, the law of succession, JASA 22, 1927.
    """
    if count == 0:
        return 0.0, 1.0
    share, z2 = hits / count, WILSON_Z**2
    middle = share + z2 / (2 * count)
    half = WILSON_Z * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2))
    scale = 1 + z2 / count
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


class Decided(NamedTuple):
    """The rows that decide, and of how many of them the class is the same."""

    rows: int
    same: int


@dataclass
class Agreement:
    """Of two models' classes: of how many rows they are the same, and right."""

    rows: int = 0
    same: int = 0
    labelled: int = 0
    reference_right: int = 0
    candidate_right: int = 0
    leads: list[Array] = field(default_factory=list)
    """Of the reference's best score over its next, in each row."""
    losses: list[Array] = field(default_factory=list)
    """Of the reference's best score over its score for the candidate's class."""
    spreads: list[Array] = field(default_factory=list)
    """Root mean squares of the reference's scores less their mean."""

    def add(
        self, spec: ModelSpec, reference: Mapping[str, Array], candidate: Mapping[str, Array],
        labels: Array | None,
    ) -> None:  # fmt: skip
        """Add the answers to the same rows; nothing where no output names a class."""
        scored = scored_output(spec)
        if scored is None or not spec.batched:
            return
        ours, theirs = (classes(spec, scored, each) for each in (reference, candidate))
        self.rows += len(ours)
        self.same += int(np.sum(ours == theirs))
        if labels is not None:
            self.labelled += len(labels)
            self.reference_right += int(np.sum(ours == labels))
            self.candidate_right += int(np.sum(theirs == labels))
        self._add_leads(scores_of(spec, scored, reference[scored.name]), ours, theirs)

    def _add_leads(self, scores: Array | None, ours: Array, theirs: Array) -> None:
        """Add by how much a class is ahead; numbers of classes are near no other."""
        is_other = ours != theirs
        if scores is None:
            self.leads.append(np.full(len(ours), np.inf))
            self.losses.append(np.where(is_other, np.inf, 0.0))
            self.spreads.append(np.zeros(len(ours)))
            return
        ordered = np.sort(scores, axis=1)
        chosen = np.take_along_axis(scores, np.minimum(theirs, scores.shape[1] - 1)[:, None], 1)
        with np.errstate(invalid="ignore"):  # of infinities
            self.leads.append(ordered[:, -1] - ordered[:, -2])
            self.losses.append(np.where(is_other, ordered[:, -1] - chosen[:, 0], 0.0))
            self.spreads.append(scores.std(axis=1))

    @property
    def accuracy_drop(self) -> float | None:
        """Return by how much the candidate is less accurate than the reference; None unlabelled."""
        if not self.labelled:
            return None
        return (self.reference_right - self.candidate_right) / self.labelled

    def decided(self, min_cosine: float | None) -> Decided:
        """Count the rows that are no near ties between models of such a cosine."""
        if not self.rows:
            return Decided(0, 0)
        leads, losses, spreads = map(np.concatenate, (self.leads, self.losses, self.spreads))
        spread = float(np.median(np.where(np.isfinite(spreads), spreads, 0.0)))
        # Of two vectors of cosine c the elements differ by sqrt(2 (1 - c)) of their spread, and the
        # difference of two elements by the root of two times that.
        least = 1.0 if min_cosine is None else max(min_cosine, LOOSEST_TIE)
        tie = ONE_SIDED_Z * 2 * spread * math.sqrt(1 - least)
        is_other = ~(losses <= tie)  # what is no number counts as other
        rows = int(np.sum(is_other | ~(leads <= tie)))
        return Decided(rows, rows - int(np.sum(is_other)))

    def faults(self, least: float, min_cosine: float | None) -> list[str]:
        """Return a sentence when of the rows that decide too few have the same class.

        The interval of the share has to reach the limit, and no more than twice as many rows as it
        allows may differ, but for one alone.
        """
        rows, same = self.decided(min_cosine)
        low, high = wilson(same, rows)
        others = rows - same
        most = max(1, math.ceil(2 * (1 - least) * rows - SHARE_ROUNDING) - 1)
        if high >= least and others <= most:
            return []
        return [
            f"the same class for {same / rows:.4f} (95 %: {low:.4f} to {high:.4f}) of the {rows} "
            f"rows of {self.rows} that are no near ties, expected at least {least:g}"
        ]

    def as_json(self, min_cosine: float | None) -> dict[str, Any]:
        """Return shares and intervals."""
        rows, same = self.decided(min_cosine)
        found: dict[str, Any] = {
            "rows": self.rows, "top1": self.same / self.rows if self.rows else None,
            "interval": wilson(self.same, self.rows), "near_ties": self.rows - rows,
            "decided_top1": same / rows if rows else None, "decided_interval": wilson(same, rows),
        }  # fmt: skip
        if self.labelled:
            for who, right in (
                ("reference", self.reference_right), ("candidate", self.candidate_right)
            ):  # fmt: skip
                found[f"{who}_accuracy"] = right / self.labelled
                found[f"{who}_accuracy_interval"] = wilson(right, self.labelled)
            found["labelled_rows"] = self.labelled
            found["accuracy_drop"] = self.accuracy_drop
        return found
