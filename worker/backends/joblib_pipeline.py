"""scikit-learn pipelines: `joblib.dump`ed, files that run whatever code they hold.

    python -m worker.backends.joblib_pipeline FILE    prints what it takes and gives, or {"error"}

Imported by the instances that need it only: scikit-learn is an extra, and slow to import. A file is
described in a process of its own, which refuses without FERRY_ALLOW_PICKLE, and without torch.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.compose import ColumnTransformer
from threadpoolctl import threadpool_limits

from shared.datatypes import NUMPY_TYPES, Array
from shared.errors import BadModel, BadModelOutput
from shared.model_spec import ModelSpec, TensorSpec
from shared.settings import Settings
from worker.backends.operator_code import load_pipeline
from worker.devices import Placement
from worker.repository.file_kinds import PICKLES, code_refusal, trusted_backends
from worker.repository.sniffer import what_is

MADE_UP_TEXTS = ["a text", "another text"]
BY_DTYPE_KIND = {"b": "BOOL", "i": "INT64", "u": "INT64", "f": "FP64"}
"""By the kind of a numpy dtype; all others are strings."""
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
        self._pipeline = load_pipeline(file)
        threadpool_limits(placement.threads)
        self._input = spec.inputs[0]
        _check_features(self._pipeline, self._input)
        self._methods = _methods(spec, self._pipeline)
        self._takes_lists = not hasattr(self._pipeline, "n_features_in_")
        for output, method in self._methods.items():
            if not callable(getattr(self._pipeline, method, None)):
                kind = type(self._pipeline).__name__
                raise BadModel(f"output {output!r}: the file's {kind} has no {method}")
        self._outputs, self._batched = spec.outputs, spec.batched
        from worker.backends.preprocessing import PixelArrays  # noqa: PLC0415  imports torch

        self._pixels = PixelArrays(spec)

    def forward(self, inputs: Mapping[str, Array], pixels: frozenset[str]) -> dict[str, Array]:
        """Run one batch; see `Backend.forward`. Each method is called once for all rows."""
        name = self._input.name
        rows = self._rows(inputs[name])
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

    def _rows(self, array: Array) -> Any:
        """Return rows as scikit-learn takes them: strings as str, texts as a plain list."""
        if array.dtype == object:
            array = np.array([item.decode() for item in array.ravel()], object).reshape(array.shape)
            if self._takes_lists and array.size == len(array):
                return array.ravel().tolist()
        return array


def _check_features(pipeline: Any, declared: TensorSpec) -> None:
    """Raise BadModel unless a row has as many numbers as the pipeline was fitted to."""
    count = getattr(pipeline, "n_features_in_", None)
    if count is None or len(declared.dims) != 1 or declared.dims[0] in (-1, count):
        return
    raise BadModel(
        f"input {declared.name!r}: the file's {type(pipeline).__name__} takes {count} features, "
        f"the config declares dims {list(declared.dims)}"
    )


def _methods(spec: ModelSpec, pipeline: Any) -> dict[str, str]:
    """Read `parameters { methods: "label=predict, scores=predict_proba" }`.

    Raises BadModel naming an output that is not declared or a method that is not offered.
    """
    text = spec.parameters.get("methods", "")
    methods = {output.name: _usual_method(output, pipeline) for output in spec.outputs}
    for part in filter(None, (part.strip() for part in text.split(","))):
        output, _, method = (side.strip() for side in part.partition("="))
        if output not in methods or method not in PIPELINE_METHODS:
            raise BadModel(
                f"methods {part!r}: expected one of {sorted(methods)}, =, "
                f"and one of {PIPELINE_METHODS}"
            )
        methods[output] = method
    return methods


def _usual_method(output: TensorSpec, pipeline: Any) -> str:
    """Return the method of an output that the config names none for.

    That is predict, but a classifier's fractions, one for each class, are probabilities.
    """
    if not hasattr(pipeline, "predict"):
        return "transform"
    classes = getattr(pipeline, "classes_", None)
    if not isinstance(classes, np.ndarray) or not hasattr(pipeline, "predict_proba"):
        return "predict"
    is_scores = output.datatype.startswith("FP") and output.dims[-1] == len(classes) > 1
    return "predict_proba" if is_scores else "predict"


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


def main(file: Path) -> None:
    """Print the description of `file`."""
    with redirect_stdout(sys.stderr):  # the file's own code may print
        try:
            answer = _read(file)
        except Exception as error:  # a border: whatever the file does to its reader is the answer
            said = str(error).strip() or type(error).__name__
            answer = {"error": " ".join(said.split())}
    print(json.dumps(answer))


def _read(file: Path) -> dict[str, Any]:
    kind = what_is(file)
    if kind.backend not in PICKLES:
        raise ValueError(kind.sentence)
    if kind.backend not in trusted_backends(Settings.from_env(os.environ)):
        raise ValueError(code_refusal(kind))
    return described(load_pipeline(file))


def described(pipeline: Any) -> dict[str, Any]:
    """Return input and outputs as `[name, datatype, shape]`, and the config's `parameters`.

    Raises ValueError saying what the config must say itself.
    """
    count = getattr(pipeline, "n_features_in_", None)
    if count is None:
        rows: Any = MADE_UP_TEXTS
        inputs = ["text", "STRING", [-1, 1]]
    else:
        _refuse_tables(pipeline)
        rows = np.zeros((len(MADE_UP_TEXTS), int(count)))
        inputs = ["features", "FP64", [-1, int(count)]]
    outputs, parameters = _outputs(pipeline, rows)
    return {"inputs": [inputs], "outputs": outputs, "parameters": parameters}


def _refuse_tables(pipeline: Any) -> None:
    """Raise ValueError for what takes columns by their names, or strings among its numbers."""
    for part in _parts(pipeline):
        columns = [each[2] for each in getattr(part, "transformers", ())]
        is_named = isinstance(part, ColumnTransformer) and any(map(_are_names, columns))
        takes_words = any(each.dtype.kind in "OUS" for each in getattr(part, "categories_", ()))
        if is_named or takes_words:
            raise ValueError(
                f"the file's {type(pipeline).__name__} was fitted to a table with columns of "
                "different kinds, not to rows of numbers or texts: write a model.py that builds it"
            )


def _parts(pipeline: Any) -> Iterator[Any]:
    """Yield an estimator and those in it, as far as they see what goes into it."""
    yield pipeline
    for inner in [getattr(pipeline, "best_estimator_", None), *getattr(pipeline, "steps", ())[:1]]:
        if inner is not None:
            yield from _parts(inner[1] if isinstance(inner, tuple) else inner)
    for fitted in getattr(pipeline, "transformers_", ()):
        yield from _parts(fitted[1])


def _are_names(columns: Any) -> bool:
    return isinstance(columns, str) or (
        isinstance(columns, list) and any(isinstance(each, str) for each in columns)
    )


def _outputs(pipeline: Any, rows: Any) -> tuple[list[list[Any]], dict[str, str]]:
    """Return the outputs, and which method gives each; of probabilities the labels too."""
    classes = getattr(pipeline, "classes_", None)
    if not hasattr(pipeline, "predict"):
        if not hasattr(pipeline, "transform"):
            raise ValueError(f"the file's {type(pipeline).__name__} has no predict")
        return [_output("transformed", _asked(pipeline, "transform", rows))], {
            "methods": "transformed=transform"
        }
    name = "prediction" if classes is None else "label"
    outputs = [_output(name, _asked(pipeline, "predict", rows))]
    if not isinstance(classes, np.ndarray) or not hasattr(pipeline, "predict_proba"):
        return outputs, {}
    outputs.append(_output("probabilities", _asked(pipeline, "predict_proba", rows)))
    labels = json.dumps([str(each) for each in classes])
    return outputs, {"methods": "probabilities=predict_proba", "labels:probabilities": labels}


def _asked(pipeline: Any, method: str, rows: Any) -> Array:
    """Return the answer to made-up rows; raises ValueError when it refuses them."""
    try:
        found = getattr(pipeline, method)(rows)
    except Exception as error:  # a border: the pipeline may refuse what is made up
        what = "texts" if rows is MADE_UP_TEXTS else "numbers"
        raise ValueError(
            f"the file's {type(pipeline).__name__} does not answer made-up {what} ({error}): write "
            "input and output"
        ) from error
    return np.asarray(found.toarray() if hasattr(found, "toarray") else found)


def _output(name: str, answer: Array) -> list[Any]:
    datatype = BY_DTYPE_KIND.get(answer.dtype.kind, "STRING")
    return [name, datatype, [-1, *(answer.shape[1:] or (1,))]]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
