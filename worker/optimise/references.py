"""References for drift: what rows and a version's answers to them are like, in `verify.json`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from shared.datatypes import Array
from shared.drift.answers import FEWEST_CLASSES, is_float, scored_output
from shared.drift.reference import class_histogram, direction_histogram, histogram
from shared.drift.signals import PREDICTION, input_signals, output_signals, vectors
from shared.errors import BadModel
from shared.model_spec import ModelSpec
from worker.optimise.rows import Batch, Rows
from worker.optimise.subjects import Subject
from worker.repository.models import ServedModel
from worker.repository.verified import VERIFY_RECORD, digests

UNPROVEN = "unproven"
"""The verdict of a record that nothing was compared for."""


@dataclass
class Signals:
    """The signals of all rows that were added."""

    spec: ModelSpec
    found: dict[str, list[Array]] = field(default_factory=dict)
    directions: list[Array] = field(default_factory=list)
    """The answers, where they are vectors."""

    def add(self, batch: Batch, answer: Mapping[str, Array]) -> None:
        """Add rows and their answers."""
        asked, answered = batch.inputs, answer
        if not self.spec.batched:  # one row, without a dimension for it; pictures have it
            asked = {n: a if n in batch.pixels else a[None] for n, a in asked.items()}
            answered = {name: array[None] for name, array in answer.items()}
        signals = input_signals(self.spec, asked, batch.pixels)
        signals |= output_signals(self.spec, answered)
        for name, values in signals.items():
            self.found.setdefault(name, []).append(values)
        if "norm" in signals:
            self.directions.append(vectors(answered[self.spec.outputs[0].name]))

    def as_json(self) -> dict[str, Any]:
        """Return each signal's histogram: `counts`, and `edges` of the continuous ones."""
        joined = {name: np.concatenate(parts) for name, parts in self.found.items()}
        found = {}
        for name, values in joined.items():
            found[name] = self._classes(values) if name == PREDICTION else histogram(values, name)
        return found | direction_histogram(self.directions)

    def _classes(self, numbers: Array) -> dict[str, Any]:
        scored = scored_output(self.spec)
        assert scored is not None, "there are predictions"
        sizes = scored.dims if is_float(scored) else (len(scored.labels),)
        return class_histogram(numbers, max(FEWEST_CLASSES, *sizes, 0))


def write_reference(model: ServedModel, subject: Subject, rows: Rows) -> dict[str, Any]:
    """Write what rows and their answers are like into a version's `verify.json`; raises BadModel.

    A verdict that stands there already is left as it is. Returns the whole record.
    """
    signals = Signals(model.spec)
    for _, batch in rows.batches(model.spec.batch_rows):
        signals.add(batch, subject.asked(batch))
    version = model.file.parent
    made = {
        "reference": signals.as_json(),
        "reference_of": {
            "source": rows.source, "rows": rows.count,
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
        },
    }  # fmt: skip
    record = _record(version) or {
        "verdict": UNPROVEN, "reasons": [], "model": model.spec.name,
        "version": model.spec.version, "digests": digests(model.spec, version),
    }  # fmt: skip
    write_record(version, record | made)
    return record | made


def _record(version: Path) -> dict[str, Any]:
    try:
        found = json.loads((version / VERIFY_RECORD).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) and "verdict" in found else {}


def write_record(version: Path, record: Mapping[str, Any]) -> None:
    """Write `verify.json` beside a version, whole or not at all; raises BadModel."""
    file = version / VERIFY_RECORD
    try:
        partial = file.with_name(f".{file.name}.partial")
        partial.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        os.replace(partial, file)
    except OSError as error:
        raise BadModel(f"{file}: not written: {error}") from error
