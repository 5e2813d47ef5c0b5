"""`python -m bench.by_hand`: what fails is a row, and what answers otherwise is never the best."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from torch import nn

from bench.by_hand.floors import floors
from bench.by_hand.networks import ROWS, Network
from bench.by_hand.recipes import EAGER, Made, Recipes
from bench.by_hand.results import OURS, Result, measure, table
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
        EAGER: lambda: answers(LOGITS),
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


def test_the_choice_of_ferry_is_compared_with_the_best_by_hand_in_the_same_rounds() -> None:
    results = [
        Result(EAGER, rates=(10, 5, 20), cosine=1),
        Result("quick", rates=(20, 10, 40), cosine=1),
        Result("wrong", rates=(90, 90, 90), cosine=0.5),
        Result(f"{OURS}: x", rates=(19, 9.5, 38), cosine=1),
    ]

    said = table(results)

    assert "best by hand: quick, 2.00 x eager" in said
    assert said.endswith("ferry optimise: x: 0.95 of the best by hand, round by round")


def test_the_floors_say_what_is_wanted_and_what_it_came_to() -> None:
    results = [
        Result(EAGER, rates=(10, 10, 10), cosine=1),
        Result("ONNX Runtime FP32", rates=(20, 20, 20), cosine=1, file_bytes=100),
        Result(f"{OURS}: int8", rates=(18, 40, 19.5), cosine=0.98, file_bytes=40),
    ]

    found = {each.wanted: (each.measured, each.reached) for each in floors("resnet18", results)}

    assert found == {
        "resnet18: 0.95 of the best by hand, ONNX Runtime FP32": ("0.97", True),
        "resnet18: 2.0 x eager FP32": ("1.95", False),
        "resnet18: cosine 0.99": ("0.9800", False),
        "resnet18: INT8 file 0.3 of FP32": ("0.40", False),
    }
    assert floors("resnet18", results[:2]) == []
    less = [replace(each, accuracy=0.9) for each in results]
    less[2] = replace(results[2], accuracy=0.88)
    drop = next(each for each in floors("sentiment", less) if "accuracy" in each.wanted)
    assert (drop.measured, drop.reached) == ("0.0200", False)
