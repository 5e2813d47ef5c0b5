"""Finds the layers that 8 bits harm most, by the activations of both files for the same rows.

A layer's harm is the growth of the relative error through it: that of its output, less that of its
input, which the layers before it made.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime

from shared.datatypes import Array

LAYERS = {"Conv", "ConvTranspose", "MatMul", "Gemm"}
SMALLEST_NORM = 1e-12
ACTIVATIONS = {"Relu", "Clip"}
"""Which become a part of the layer before them once that is quantised."""


class _Layer(NamedTuple):
    name: str
    source: str
    output: str


def worst_layers(
    base: Path, quantised: Path, feeds: Iterable[dict[str, Array]], share: float
) -> list[str]:
    """Return the names of the `share` of layers that are harmed most, at least one; worst first."""
    import onnx  # noqa: PLC0415  an extra, which a machine that serves does not need

    nodes = onnx.load(str(base)).graph.node
    activated = {node.input[0]: node.output[0] for node in nodes if node.op_type in ACTIVATIONS}
    layers = [
        _Layer(node.name, node.input[0], activated.get(node.output[0], node.output[0]))
        for node in nodes
        if node.op_type in LAYERS
    ]
    shown = list(dict.fromkeys(name for each in layers for name in (each.source, each.output)))
    few = list(itertools.islice(feeds, 2))
    errors = _errors(_activations(base, shown, few), _activations(quantised, shown, few))
    harmed = [each for each in layers if each.output in errors]
    harmed.sort(key=lambda each: errors.get(each.source, 0.0) - errors[each.output])
    return [each.name for each in harmed[: max(1, round(share * len(layers)))]]


def _errors(ours: dict[str, Array], theirs: dict[str, Array]) -> dict[str, float]:
    return {
        name: float(
            np.linalg.norm(theirs[name] - array) / max(SMALLEST_NORM, float(np.linalg.norm(array)))
        )
        for name, array in ours.items()
        if name in theirs and theirs[name].shape == array.shape
    }


def _activations(
    file: Path, names: Sequence[str], feeds: Sequence[dict[str, Array]]
) -> dict[str, Array]:
    """Return tensors inside a model, flat, of all rows one after another."""
    import onnx  # noqa: PLC0415  an extra, which a machine that serves does not need

    model = onnx.load(str(file))
    there = {name for node in model.graph.node for name in node.output}
    outputs = {each.name for each in model.graph.output}
    model.graph.output.extend(
        onnx.ValueInfoProto(name=name) for name in names if name in there - outputs
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    levels: Any = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_BASIC
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, ["CPUExecutionProvider"]
    )
    wanted = [each.name for each in session.get_outputs() if each.name in names]
    takes = {each.name for each in session.get_inputs()}
    answers = [
        session.run(wanted, {name: array for name, array in feed.items() if name in takes})
        for feed in feeds
    ]
    return {
        name: np.concatenate([answer[at].ravel() for answer in answers]).astype(np.float64)
        for at, name in enumerate(wanted)
    }
