"""What the clients ask, and what must come back: written by the programme, read by the load.

The load's process has no torch: a model's weights, or inputs with their right outputs, reach it as
a file of arrays.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.random import Generator

from shared.datatypes import Array

TOLERANCE = 1e-4
"""Batches of other sizes round differently, by 1e-6; two random inputs' outputs differ by 1e-1."""

FIRST_VERSION = "1"
SMALL_ANSWER = 16


class Questions(Protocol):
    """Makes inputs of one model, each with the output that is its own."""

    @property
    def input_name(self) -> str:
        """What the model calls its input."""

    def ask(self, random: Generator) -> tuple[Array, Array]:
        """Return a batch of one row, [1, ...], and the row that must come back."""


@dataclass(frozen=True)
class Computed:
    """Two layers with a ReLU between: every input is new, its output computed here with numpy."""

    input_name: str
    first: Array
    first_bias: Array
    second: Array
    second_bias: Array

    def ask(self, random: Generator) -> tuple[Array, Array]:
        """Return a normal random row and its output."""
        row = random.normal(size=(1, self.first.shape[1])).astype(np.float32)
        hidden = np.maximum(row @ self.first.T + self.first_bias, 0)
        return row, (hidden @ self.second.T + self.second_bias)[0]


@dataclass(frozen=True)
class Prepared:
    """Inputs [n, ...] whose outputs [n, ...] were computed one by one before."""

    input_name: str
    inputs: Array
    outputs: Array

    def ask(self, random: Generator) -> tuple[Array, Array]:
        """Return one of the inputs and its output."""
        index = int(random.integers(len(self.inputs)))
        return self.inputs[index : index + 1], self.outputs[index]


@dataclass(frozen=True)
class Wide:
    """Rows of `length` numbers, whose first one says how many come back, in the other order.

    That are all of them, or so few that an answer is small if it is not to be `large`.
    """

    input_name: str
    length: int
    large: bool

    def ask(self, random: Generator) -> tuple[Array, Array]:
        """Return a row that looks like no other, and its answer."""
        row = np.resize(random.integers(0, 1000, 17).astype(np.float32), (1, self.length))
        count = self.length if self.large else SMALL_ANSWER
        row[0, 0] = count
        return row, row[0, :count][::-1]


def write(questions: Computed | Prepared | Wide, file: Path) -> None:
    """Write questions for `read`."""
    arrays: dict[str, Any] = dict(vars(questions))
    np.savez(file, **arrays)


def read(file: Path) -> Questions:
    """Return what `write` wrote."""
    with np.load(file) as arrays:
        fields = {name: arrays[name] for name in arrays.files}
    fields["input_name"] = str(fields["input_name"])
    if "length" in fields:
        return Wide(fields["input_name"], int(fields["length"]), bool(fields["large"]))
    return Prepared(**fields) if "inputs" in fields else Computed(**fields)


def answer_of(version: str, expected: Array) -> Array:
    """Return the row that a version answers: its number times that of the first version."""
    return expected * int(version)


def is_right(answer: Any, expected: Array) -> bool:
    """Tell whether a v2 tensor's flat `data` are the expected row."""
    if not isinstance(answer, list) or len(answer) != expected.size:
        return False
    row = np.array([np.nan if value is None else value for value in answer], np.float64)
    return bool(np.allclose(row, expected, rtol=TOLERANCE, atol=TOLERANCE))
