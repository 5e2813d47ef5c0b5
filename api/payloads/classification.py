"""The classification extension: an output as its best classes, `value:index[:label]`.

Source: https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_classification.md
"""

from __future__ import annotations

from math import prod

import numpy as np

from shared.datatypes import to_bytes
from shared.errors import BadModelOutput
from shared.messages import Tensor
from shared.model_spec import ModelSpec


def classified(tensor: Tensor, class_count: int, spec: ModelSpec) -> Tensor:
    """Return the `class_count` largest values of each row, largest first, as BYTES.

    The shape is [rows, classes], without a batch dimension [classes]; there are no more classes
    than values in a row. Values are written as C's `%f`, whole numbers as they are. Raises
    BadModelOutput for NaN, which has no place among them.
    """
    array = tensor.array()
    leading = len(array) if spec.batched else 1
    rows = array.reshape(leading, prod(array.shape[int(spec.batched) :]))
    if rows.dtype.kind not in "iu" and np.isnan(rows).any():
        raise BadModelOutput(f"output {tensor.name!r}: NaN among its values, which have no order")
    count = min(class_count, rows.shape[1])
    # Of equal values the first is the better: a stable sort of the row reversed, read backwards.
    backwards = np.argsort(rows[:, ::-1], axis=1, kind="stable")[:, ::-1][:, :count]
    best = rows.shape[1] - 1 - backwards
    labels = next(output.labels for output in spec.outputs if output.name == tensor.name)
    whole = rows.dtype.kind in "iu"
    texts = [
        _text(int(row[index]) if whole else float(row[index]), index, labels)
        for row, order in zip(rows, best.tolist(), strict=True)
        for index in order
    ]
    shape = (len(rows), count) if spec.batched else (count,)
    return Tensor(tensor.name, "BYTES", shape, to_bytes(np.array(texts, dtype=object)))


def _text(value: float, index: int, labels: tuple[str, ...]) -> bytes:
    text = f"{value}:{index}" if isinstance(value, int) else f"{value:f}:{index}"
    label = labels[index] if index < len(labels) else ""
    return (f"{text}:{label}" if label else text).encode()
