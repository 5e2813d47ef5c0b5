"""Histograms of a model's answers and of what it is asked, as later ones are compared with them.

    prediction               one bin for each class
    confidence, entropy      of the probabilities (entropy in nats)
    brightness, tokens, mean of a picture's pixels (0 to 255), of a text, of a row of numbers

Continuous ones have the reference's 10 % quantiles as edges, so that each bin holds a tenth of it,
and two bins more for what is below and above all of it. The edges are fixed then: edges that move
with the data hide its drift.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from shared.datatypes import Array
from shared.model_spec import ModelSpec
from worker.optimise.agreement import FEWEST_CLASSES, classes, scored_output
from worker.optimise.figures import TINY
from worker.optimise.rows import Batch

QUANTILES = np.linspace(0, 1, 11)
MASK = "attention_mask"


@dataclass
class Signals:
    """The signals of all rows that were added."""

    spec: ModelSpec
    found: dict[str, list[Array]] = field(default_factory=dict)

    def add(self, batch: Batch, answer: Mapping[str, Array]) -> None:
        """Add rows and their answers."""
        for name, values in {**_of_inputs(self.spec, batch), **self._of(answer)}.items():
            self.found.setdefault(name, []).append(values)

    def _of(self, answer: Mapping[str, Array]) -> dict[str, Array]:
        scored = scored_output(self.spec)
        if scored is None or not self.spec.batched:
            return {}
        signals = {"prediction": classes(self.spec, scored, answer)}
        scores = answer[scored.name].reshape(len(answer[scored.name]), -1)
        if scored.datatype.startswith(("FP", "BF")) and scores.shape[1] >= FEWEST_CLASSES:
            shares = probabilities(scores.astype(np.float64), self.spec.output_activation)
            signals["confidence"] = shares.max(axis=1)
            if self.spec.output_activation != "sigmoid":
                signals["entropy"] = -(shares * np.log(np.maximum(shares, TINY))).sum(axis=1)
        return signals

    def as_json(self) -> dict[str, Any]:
        """Return each signal's histogram: `counts`, and `edges` of the continuous ones."""
        return {
            name: self._counted(parts) if name == "prediction" else histogram(np.concatenate(parts))
            for name, parts in self.found.items()
        }

    def _counted(self, parts: list[Array]) -> dict[str, Any]:
        scored = scored_output(self.spec)
        assert scored is not None, "there are predictions"
        numbers = np.concatenate(parts)
        count = max([FEWEST_CLASSES, *scored.dims, int(numbers.max()) + 1])
        return {"counts": np.bincount(numbers, minlength=count).tolist(), "rows": len(numbers)}


def histogram(values: Array) -> dict[str, Any]:
    """Return a reference's own edges and counts: below, ten bins, above."""
    finite = values[np.isfinite(values)].astype(np.float64)
    edges = np.quantile(finite, QUANTILES) if len(finite) else np.zeros(len(QUANTILES))
    bins = np.searchsorted(edges[1:-1], finite, side="right")
    counts = [0, *np.bincount(bins, minlength=len(edges) - 1).tolist(), 0]
    return {"edges": edges.tolist(), "counts": counts, "rows": len(finite)}


def probabilities(scores: Array, activation: str) -> Array:
    """Return scores as shares, as the API would give them."""
    if activation == "sigmoid":
        return np.asarray(1.0 / (1.0 + np.exp(-scores)))
    if activation == "none":
        return scores
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def _of_inputs(spec: ModelSpec, batch: Batch) -> dict[str, Array]:
    if not spec.batched:
        return {}
    first = next(iter(batch.inputs.values()))
    if batch.pixels:
        pixels = batch.inputs[next(iter(batch.pixels))]
        return {"brightness": pixels.reshape(len(pixels), -1).mean(axis=1)}
    if spec.text is not None:
        mask = batch.inputs.get(MASK)
        lengths = np.full(len(first), first.shape[1]) if mask is None else mask.sum(axis=1)
        return {"tokens": lengths.astype(np.float64)}
    if len(batch.inputs) == 1 and not first.dtype.hasobject:
        return {"mean": first.astype(np.float64).reshape(len(first), -1).mean(axis=1)}
    return {}
