"""Drift on real data: changed digits are reported within 500 answers, the held-out fifth is not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from scipy import ndimage

from samples.digits import held_out
from samples.digits.pictures import resize, training_handwriting
from shared.drift.findings import FEWEST_ROWS, findings
from shared.drift.reference import Reference
from shared.drift.signals import Values
from shared.model_spec import ModelSpec
from shared.settings import Settings
from worker.devices import Placement
from worker.optimise.references import Signals
from worker.optimise.rows import array_rows
from worker.optimise.subjects import Subject, load_version
from worker.repository.models import read_model

REPETITIONS = 200
ANSWERS = 500
CHANGES = {
    "shifted to the right": lambda p: ndimage.shift(p, (0, 0, 1)),
    "shifted down": lambda p: ndimage.shift(p, (0, 1, 0)),
    "shifted around the edge": lambda p: np.roll(p, 2, axis=2),
    "blurred a little": lambda p: ndimage.gaussian_filter(p, (0, 0.5, 0.5)),
    "blurred": lambda p: ndimage.uniform_filter(p, (0, 3, 3)),
    "inverted": lambda p: 255 - p,
    "darker": lambda p: p // 2,
    "noisy": lambda p: np.random.default_rng(1).normal(p, 30).clip(0, 255).astype(np.uint8),
}


class Seen(NamedTuple):
    """The digits' model, and its reference: what it was trained on."""

    spec: ModelSpec
    subject: Subject
    reference: Reference

    def signals(self, pictures: np.ndarray) -> Signals:
        pixels = np.stack([resize(picture) for picture in pictures])[..., None]
        take = array_rows({"image": pixels}, self.spec, frozenset({"image"}))
        batch, found = take(range(len(pixels))), Signals(self.spec)
        found.add(batch, self.subject.asked(batch))
        return found

    def values(self, pictures: np.ndarray) -> Values:
        return {name: np.concatenate(parts) for name, parts in self.signals(pictures).found.items()}

    def drifting(self, values: Values, rows: np.ndarray) -> list[str]:
        signals = self.reference.signals
        counted = {name: bins.counted(values[name][rows]) for name, bins in signals.items()}
        return [each.signal for each in findings(self.reference, counted) if each.drifts]


@pytest.fixture(scope="module")
def seen(sample_models: Path) -> Seen:
    model = read_model(sample_models, "digits")
    subject = load_version(model, Settings(), Placement("cpu", 1))
    without = Seen(model.spec, subject, Reference({}, None, "", {}))
    pictures, _ = training_handwriting()
    return without._replace(reference=Reference.of(without.signals(pictures).as_json()))


def test_the_held_out_fifth_raises_no_alarm_in_200_repetitions(seen: Seen) -> None:
    values, random = seen.values(held_out()[0]), np.random.default_rng(18)

    alarms = 0
    for repetition in range(REPETITIONS):
        count = ANSWERS if repetition % 2 else FEWEST_ROWS
        alarms += bool(seen.drifting(values, random.integers(0, 360, count)))

    assert alarms <= 0.01 * REPETITIONS


@pytest.mark.parametrize("change", CHANGES)
def test_changed_digits_are_reported_within_500_answers(seen: Seen, change: str) -> None:
    changed: Callable[[np.ndarray], np.ndarray] = CHANGES[change]
    values, random = seen.values(changed(held_out()[0])), np.random.default_rng(18)

    for _ in range(20):
        assert seen.drifting(values, random.integers(0, 360, ANSWERS))


def test_a_class_that_is_missing_is_reported_within_500_answers(seen: Seen) -> None:
    pictures, labels = held_out()
    values, random = seen.values(pictures), np.random.default_rng(18)

    for missing in range(10):
        others = np.flatnonzero(labels != missing)
        for _ in range(20):
            rows = others[random.integers(0, len(others), ANSWERS)]
            assert "prediction" in seen.drifting(values, rows), f"no {missing}"
