"""Output rows described for people: class, label, confidence."""

from __future__ import annotations

from typing import Any

import numpy as np

from shared.datatypes import Array
from shared.messages import InferResult
from shared.model_spec import ModelSpec


def describe_rows(spec: ModelSpec, result: InferResult, top_k: int) -> list[dict[str, Any]]:
    """Return one answer per row, best class first in `top_k`.

    A model of one class score per row (sigmoid) answers with it as `confidence` of class 1.
    """
    scores = _scores(result.outputs[0].array(), spec)
    labels = spec.outputs[0].labels
    count = min(top_k, scores.shape[1])
    best = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    return [
        _describe(spec, labels, row, order)
        for row, order in zip(scores, best.tolist(), strict=True)
    ]


def _describe(
    spec: ModelSpec, labels: tuple[str, ...], scores: Array, order: list[int]
) -> dict[str, Any]:
    ranked = [
        {
            "class": index,
            "label": (labels[index] if index < len(labels) else "") or str(index),
            "confidence": round(float(scores[index]), 6),
        }
        for index in order
    ]
    first = ranked[0]
    if spec.label_key:
        return {spec.label_key: first["label"], "confidence": first["confidence"], "top_k": ranked}
    return {**first, "top_k": ranked}


def _scores(output: Array, spec: ModelSpec) -> Array:
    """Return confidences [rows, classes] from the raw first output."""
    values = output.astype(np.float64)
    values = values.reshape(len(output), -1) if spec.batched else values.reshape(1, -1)
    if spec.output_activation == "softmax":
        shifted = np.exp(values - values.max(axis=1, keepdims=True))
        values = shifted / shifted.sum(axis=1, keepdims=True)
    elif spec.output_activation == "sigmoid":
        values = 1.0 / (1.0 + np.exp(-np.clip(values, -60, 60)))
    if values.shape[1] == 1:
        values = np.concatenate([1.0 - values, values], axis=1)
    return values
