"""`python -m bench.by_hand`: what fails is a row, and what answers otherwise is never the best."""

from __future__ import annotations

import numpy as np
import pytest
from torch import nn

from bench.by_hand import ROWS, Made, Network, Recipes, measure, table
from shared.datatypes import Array

LOGITS = np.random.default_rng(0).normal(size=(ROWS, 5)).astype(np.float32)


def test_recipes_are_compared_with_eager_on_the_rows_that_are_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails() -> Made:
        raise RuntimeError("no such operator\nand a long trace")

    def answers(logits: Array) -> Made:
        return Made(lambda _: logits)

    recipes = {
        "eager FP32": lambda: answers(LOGITS),
        "shifted": lambda: answers(LOGITS + 3),
        "wrong": lambda: answers(-LOGITS),
        "broken": fails,
    }
    monkeypatch.setattr(Recipes, "all", lambda self: recipes)
    network = Network("made-up", nn.Identity(), [], [{"x": LOGITS}], labels=LOGITS.argmax(axis=1))

    results = measure(network, rounds=3, seconds=0.0, threads=1)

    eager, shifted, wrong, broken = results
    assert (shifted.cosine, shifted.agreement, shifted.accuracy) == (pytest.approx(1), 1, 1)
    assert (wrong.cosine, wrong.agreement) == (pytest.approx(-1), 0)
    assert [len(each.rates) for each in results] == [3, 3, 3, 0]
    assert eager.rate > 0
    assert broken.problem == "RuntimeError: no such operator"
    said = table([eager, wrong, broken])
    assert "RuntimeError: no such operator" in said
    assert said.endswith("best by hand: eager FP32, 1.00 x eager")
