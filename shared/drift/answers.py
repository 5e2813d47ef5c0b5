"""What an answer says of its row: the class, and how sure the model is of it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from shared.datatypes import Array
from shared.model_spec import ModelSpec, TensorSpec

FEWEST_CLASSES = 2


def scored_output(spec: ModelSpec) -> TensorSpec | None:
    """Return the output that names a row's class: scores of several, of one, or its number."""
    if spec.gives_vectors:
        return None
    for output in spec.outputs:
        sizes = [size for size in output.dims if size != 1]
        if is_float(output) and len(sizes) == 1 and sizes[0] >= FEWEST_CLASSES:
            return output
    first = spec.outputs[0]
    is_single = all(size == 1 for size in first.dims) and first.datatype != "BYTES"
    has_activation = spec.parameters.get("output_activation") == "sigmoid" or bool(first.labels)
    return first if is_single and (not is_float(first) or has_activation) else None


def is_float(tensor: TensorSpec) -> bool:
    """Tell whether its elements are floats."""
    return tensor.datatype.startswith(("FP", "BF"))


def classes(spec: ModelSpec, scored: TensorSpec, answer: Mapping[str, Array]) -> Array:
    """Return the class of each row by the output that `scored_output` chose."""
    array = answer[scored.name]
    scores = scores_of(spec, scored, array)
    if scores is None:
        return array.reshape(len(array), -1)[:, 0].astype(np.int64)
    best: Array = np.argmax(scores, axis=1)
    return best


def scores_of(spec: ModelSpec, scored: TensorSpec, array: Array) -> Array | None:
    """Return a score for each class, what is no number lowest; None for a class's number.

    A single score is class 1's, and class 0's is the limit between the two.
    """
    flat = array.reshape(len(array), -1)
    if flat.shape[1] < FEWEST_CLASSES and not is_float(scored):
        return None
    flat = np.nan_to_num(flat.astype(np.float64), nan=-np.inf, posinf=np.inf, neginf=-np.inf)
    if flat.shape[1] >= FEWEST_CLASSES:
        return flat
    limit = 0.0 if spec.output_activation == "sigmoid" else 0.5
    return np.hstack([np.full_like(flat, limit), flat])


def probabilities(scores: Array, activation: str) -> Array:
    """Return scores [rows, classes] as shares, as the API would give them.

    A single one becomes the shares of both classes.
    """
    if activation == "softmax" and scores.shape[1] >= FEWEST_CLASSES:
        powers = np.exp(scores - scores.max(axis=1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True))
    with np.errstate(over="ignore"):
        shares = np.asarray(1.0 / (1.0 + np.exp(-scores))) if activation == "sigmoid" else scores
    return shares if shares.shape[1] >= FEWEST_CLASSES else np.hstack([1.0 - shares, shares])
