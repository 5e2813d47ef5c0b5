"""Output rows described for people: class, label, confidence."""

from __future__ import annotations

from typing import Any

import numpy as np

from api.payloads.v1_json import tensor_values
from shared.datatypes import Array
from shared.errors import BadModelOutput
from shared.messages import InferResult, Tensor
from shared.model_spec import ModelSpec, TensorSpec

ROUNDING = 1e-6
"""So much a confidence that was computed in 32 bits may lie outside 0 to 1."""


def describe_rows(spec: ModelSpec, result: InferResult, top_k: int) -> list[dict[str, Any]]:
    """Return one answer per row, best class first in `top_k`.

    One score per row is the `confidence` of class 1, one whole number the class itself. A model
    whose first output is no score answers with its outputs under their names. Raises
    BadModelOutput for scores by which no class is the best.
    """
    if not spec.has_rows(result.outputs):
        return []
    if not _gives_scores(spec):
        return _named_rows(spec, result, top_k)
    labels = spec.outputs[0].labels
    values = _of_rows(result.outputs[0].array(), spec)
    if _are_classes(values, spec):
        return [_class(spec, labels, int(row[0])) for row in values]
    scores = _scores(values.astype(np.float64), spec)
    count = min(top_k, scores.shape[1])
    best = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    return [
        _describe(spec, labels, row, order)
        for row, order in zip(scores, best.tolist(), strict=True)
    ]


def _ranked(labels: tuple[str, ...], scores: Array, order: list[int]) -> list[dict[str, Any]]:
    return [
        {
            "class": index,
            "label": _label(labels, index),
            "confidence": round(float(scores[index]), 6),
        }
        for index in order
    ]


def _label(labels: tuple[str, ...], index: int) -> str:
    """Return what a class is called: its number where no label names it."""
    return (labels[index] if 0 <= index < len(labels) else "") or str(index)


def _class(spec: ModelSpec, labels: tuple[str, ...], index: int) -> dict[str, Any]:
    """Describe a row of which the model tells the class, not how sure it is."""
    label = _label(labels, index)
    return {spec.label_key: label} if spec.label_key else {"class": index, "label": label}


def _describe(
    spec: ModelSpec, labels: tuple[str, ...], scores: Array, order: list[int]
) -> dict[str, Any]:
    ranked = _ranked(labels, scores, order)
    first = ranked[0]
    if spec.label_key:
        return {spec.label_key: first["label"], "confidence": first["confidence"], "top_k": ranked}
    return {**first, "top_k": ranked}


def _of_rows(output: Array, spec: ModelSpec) -> Array:
    """Return the raw first output as [rows, values]."""
    rows = len(output) if spec.batched else 1
    return output.reshape(rows, output.size // rows)


def _are_classes(values: Array, spec: ModelSpec) -> bool:
    """Tell whether each row is one class (argmax): a whole number that nobody calls a score."""
    is_score = spec.parameters.get("output_activation") == "sigmoid"
    return values.shape[1] == 1 and values.dtype.kind in "iub" and not is_score


def _scores(values: Array, spec: ModelSpec) -> Array:
    """Return confidences [rows, classes] from the raw first output."""
    name = spec.outputs[0].name
    if values.shape[1] == 1:
        return _two_classes(_one_score(values, spec), name)
    with np.errstate(invalid="ignore"):  # infinities become NaN, and are told from it
        if spec.output_activation == "softmax":
            shifted = np.exp(values - values.max(axis=1, keepdims=True, initial=-np.inf))
            values = shifted / shifted.sum(axis=1, keepdims=True)
        elif spec.output_activation == "sigmoid":
            values = _sigmoid(values)
    return _ordered(values, name)


def _sigmoid(values: Array) -> Array:
    confidences: Array = 1.0 / (1.0 + np.exp(-np.clip(values, -60, 60)))
    return confidences


def _one_score(values: Array, spec: ModelSpec) -> Array:
    """Return one score per row as the config says: as it is, unless it asks for more."""
    name, activation = spec.outputs[0].name, spec.parameters.get("output_activation")
    values = _ordered(_sigmoid(values) if activation == "sigmoid" else values, name)
    if activation == "softmax":
        raise BadModelOutput(
            f"output {name!r}: there is one score per row, of which softmax makes 1 whatever it "
            "is: set output_activation to sigmoid, or to none if it is from 0 to 1"
        )
    return values


def _two_classes(values: Array, name: str) -> Array:
    """Return one score per row as that of class 1, beside the rest; raises BadModelOutput."""
    wrong = (np.abs(values - 0.5) > 0.5 + ROUNDING).any(axis=1)
    if wrong.any():
        row = int(wrong.argmax())
        raise BadModelOutput(
            f"output {name!r}: the one score of row {row} is {values[row, 0]:g}, expected 0 to 1: "
            "set output_activation to sigmoid if it is a logit"
        )
    values = np.clip(values, 0.0, 1.0)
    return np.concatenate([1.0 - values, values], axis=1)


def _ordered(confidences: Array, name: str) -> Array:
    """Return confidences of which one is the best; raises BadModelOutput naming the row else."""
    if not confidences.shape[1]:
        raise BadModelOutput(f"output {name!r}: there are no scores, so no class is the best")
    wrong = ~np.isfinite(confidences).all(axis=1)
    if wrong.any():
        raise BadModelOutput(
            f"output {name!r}: the scores of row {wrong.argmax()} hold NaN or infinities, so no "
            "class is the best"
        )
    return confidences


def _gives_scores(spec: ModelSpec) -> bool:
    """Tell whether the first output is scores of classes: of strings alone nobody says so."""
    first = spec.outputs[0]
    if first.datatype == "BYTES" or spec.gives_vectors:
        return False
    says_so = first.labels or spec.label_key or "output_activation" in spec.parameters
    return bool(spec.image or spec.text or says_so)


def _named_rows(spec: ModelSpec, result: InferResult, top_k: int) -> list[dict[str, Any]]:
    """Return each row's outputs by name, but of scores with labels what they say."""
    columns = {tensor.name: _rows(tensor, spec) for tensor in result.outputs}
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    scored = next((item for item in spec.outputs[1:] if item.labels and item.name in columns), None)
    if scored is None:
        return rows
    return [_with_confidence(row, scored, spec.outputs[0].name, top_k) for row in rows]


def _rows(tensor: Tensor, spec: ModelSpec) -> list[Any]:
    """Return an output's rows, one that has a single value as that."""
    values = tensor_values(tensor)
    if tensor.datatype == "BF16":  # orjson does not know it
        values = values.astype(np.float32)
    return [_unwrapped(row) for row in (values if spec.batched else [values])]


def _unwrapped(row: Any) -> Any:
    while np.ndim(row) and len(row) == 1:
        row = row[0]
    return row


def _with_confidence(
    row: dict[str, Any], scored: TensorSpec, named: str, top_k: int
) -> dict[str, Any]:
    """Replace a row's scores by the `confidence` in its label, and the best classes."""
    scores = np.asarray(row.pop(scored.name), np.float64).reshape(1, -1)
    scores = _ordered(scores, scored.name)[0]
    ranked = _ranked(scored.labels, scores, np.argsort(-scores, kind="stable")[:top_k].tolist())
    of_label = dict(zip(scored.labels, scores.tolist(), strict=False))
    confidence = of_label.get(str(row.get(named)), ranked[0]["confidence"])
    return {**row, "confidence": round(confidence, 6), "top_k": ranked}
