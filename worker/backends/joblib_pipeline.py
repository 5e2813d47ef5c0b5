"""scikit-learn pipelines: `joblib.dump`ed, files that run whatever code they hold.

Imported by the instances that need it only: scikit-learn is an extra, and slow to import.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import sklearn  # noqa: F401  what nearly every joblib file needs
from threadpoolctl import threadpool_limits

from shared.datatypes import NUMPY_TYPES, Array
from shared.errors import BadModel, BadModelOutput
from shared.model_spec import ModelSpec, TensorSpec
from worker.backends.operator_code import make_importable
from worker.backends.preprocessing import PixelArrays
from worker.devices import Placement

LABELS = (str, int, float, np.number, np.bool_)
PIPELINE_METHODS = (
    "predict",
    "predict_proba",
    "predict_log_proba",
    "decision_function",
    "transform",
)


class JoblibBackend:
    """A pipeline; each output is the answer of one of its methods to the whole batch."""

    def __init__(self, spec: ModelSpec, file: Path, placement: Placement) -> None:
        """Load `file`, which runs the code in it; raises BadModel or any error of that code."""
        if len(spec.inputs) != 1:
            raise BadModel(f"a pipeline has one input, the config declares {len(spec.inputs)}")
        make_importable(file)
        with warnings.catch_warnings():
            warnings.simplefilter("default")  # one of another scikit-learn warns, and may work
            self._pipeline: Any = joblib.load(file)
        threadpool_limits(placement.threads)
        self._input = spec.inputs[0]
        _check_features(self._pipeline, self._input)
        self._methods = _methods(spec)
        for output, method in self._methods.items():
            if not callable(getattr(self._pipeline, method, None)):
                kind = type(self._pipeline).__name__
                raise BadModel(f"output {output!r}: the file's {kind} has no {method}")
        self._outputs, self._batched = spec.outputs, spec.batched
        self._pixels = PixelArrays(spec)

    def forward(self, inputs: Mapping[str, Array], pixels: frozenset[str]) -> dict[str, Array]:
        """Run one batch; see `Backend.forward`. Each method is called once for all rows."""
        name = self._input.name
        rows = _rows(inputs[name], self._input)
        if name in pixels:
            rows = self._pixels(inputs[name])
        # Copies: a step may write into its input, as scalers do that were made with copy=False.
        found = {
            method: getattr(self._pipeline, method)(rows.copy())
            for method in {*self._methods.values()}
        }
        return {
            output.name: _answer(found[self._methods[output.name]], output, batched=self._batched)
            for output in self._outputs
        }


def _check_features(pipeline: Any, declared: TensorSpec) -> None:
    """Raise BadModel unless a row has as many numbers as the pipeline was fitted to."""
    count = getattr(pipeline, "n_features_in_", None)
    if count is None or len(declared.dims) != 1 or declared.dims[0] in (-1, count):
        return
    raise BadModel(
        f"input {declared.name!r}: the file's {type(pipeline).__name__} takes {count} features, "
        f"the config declares dims {list(declared.dims)}"
    )


def _methods(spec: ModelSpec) -> dict[str, str]:
    """Read `parameters { methods: "label=predict, scores=predict_proba" }`; predict if not there.

    Raises BadModel naming an output that is not declared or a method that is not offered.
    """
    text = spec.parameters.get("methods", "")
    methods = {output.name: "predict" for output in spec.outputs}
    for part in filter(None, (part.strip() for part in text.split(","))):
        output, _, method = (side.strip() for side in part.partition("="))
        if output not in methods or method not in PIPELINE_METHODS:
            raise BadModel(
                f"methods {part!r}: expected one of {sorted(methods)}, =, "
                f"and one of {PIPELINE_METHODS}"
            )
        methods[output] = method
    return methods


def _rows(array: Array, declared: TensorSpec) -> Any:
    """Return rows as scikit-learn takes them: strings as str, one text per row as a plain list."""
    if array.dtype == object:
        array = np.array([item.decode() for item in array.ravel()], object).reshape(array.shape)
        if declared.dims == (1,):
            return array.ravel().tolist()
    return array


def _answer(found: Any, declared: TensorSpec, *, batched: bool) -> Array:
    """Return a method's answer as the declared output; raises BadModelOutput for another type."""
    if hasattr(found, "toarray"):  # a sparse matrix
        found = found.toarray()
    array: Array = np.asarray(found)
    if array.ndim == 1 and batched and len(declared.dims) == 1:
        array = array[:, None]
    if declared.datatype == "BYTES":
        return np.fromiter(map(_text, array.ravel()), object, array.size).reshape(array.shape)
    wanted = NUMPY_TYPES[declared.datatype]
    if not np.can_cast(array.dtype, wanted, "same_kind"):
        raise BadModelOutput(
            f"output {declared.name!r}: the pipeline gave {array.dtype}, the config declares "
            f"{declared.datatype}"
        )
    return array.astype(wanted)


def _text(item: Any) -> Any:
    """Return a label as bytes; what is none is left to who checks the model's answers."""
    return str(item).encode() if isinstance(item, LABELS) else item
