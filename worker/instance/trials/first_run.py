"""Runs a model once on made-up rows, for what neither its file nor its config says.

    python -m worker.instance.trials.first_run REPOSITORY NAME VERSION ASKED

ASKED is {"max_batch_size": a number or null, "untyped": the inputs whose TYPE nobody said} as JSON;
what is printed is one JSON object, see `learn`. A process of its own: it loads the framework, and
runs whatever code a model brings.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from google.protobuf import text_format

from shared.datatypes import NUMPY_TYPES, Array, datatype_of
from shared.errors import BadModel
from shared.model_spec import ModelSpec, TensorSpec
from shared.settings import Settings
from worker.backends.base import Backend, all_outputs
from worker.backends.loading import load_file
from worker.backends.torch_arrays import to_numpy
from worker.backends.torch_model import UndeclaredArguments
from worker.devices import Placement
from worker.instance.trials.trial_load import own_output
from worker.instance.warmup import said
from worker.repository.adding.notation import data_type
from worker.repository.config.completion import DEFAULT_MAX_BATCH_SIZE, declare
from worker.repository.config.description import Described
from worker.repository.config.formats import find_format
from worker.repository.config.tensors import read_tensor
from worker.repository.file_kinds import trusted_backends
from worker.repository.model_config import read_message

ROWS = 3
"""Rows that a model is asked together, to see whether it gives an answer for each."""
FREE_SIZES = (16, 64, 512, 4096)
"""What free dimensions are tried with, up to the first that the model takes."""
UNTYPED = ("FP32", "INT64")
"""What inputs whose TYPE nobody said are tried with."""
NO_BATCH = "--max-batch-size 0 says that the model takes no batch dimension"
Learned = dict[str, Any]


def learn(repository: Path, name: str, version: str, asked: Mapping[str, Any]) -> Learned:
    """Return {"config": the completed config as text, "notes": sentences for people}.

    Or {"arguments": those of `forward` that no input feeds}. Raises BadModel saying why the model
    cannot be run, and its own errors when it is loaded.
    """
    directory = repository / name
    message = read_message(directory / "config.pbtxt")
    inputs = [read_tensor(item, directory) for item in message.input]
    outputs = [read_tensor(item, directory) for item in message.output]
    try:
        backend = _loaded(message, inputs, outputs, directory / version)
    except UndeclaredArguments as error:
        return {"arguments": error.names}
    if not inputs:
        return {"arguments": []}
    subject = _Subject(backend, inputs)
    if message.output and not subject.answers(batched=asked["max_batch_size"] != 0):
        message.max_batch_size = asked["max_batch_size"] or 0
        if asked["max_batch_size"] is None:
            message.max_batch_size = DEFAULT_MAX_BATCH_SIZE
        note = "it refuses made-up rows, so what it does with several together was not looked at"
        return {"config": text_format.MessageToString(message), "notes": [note]}
    notes = []
    if subject.choose(asked["untyped"], batched=asked["max_batch_size"] != 0) != UNTYPED[0]:
        notes = [f"{', '.join(asked['untyped'])}: {UNTYPED[1]}, since {UNTYPED[0]} is refused"]
        for item, tensor in zip(message.input, subject.inputs, strict=True):
            item.data_type = data_type(tensor.datatype)
    return {"notes": notes + _complete(message, subject, asked["max_batch_size"])} | {
        "config": text_format.MessageToString(message)
    }


def _loaded(
    message: Any, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], directory: Path
) -> Backend:
    found = find_format(
        message.platform, message.backend, message.default_model_filename,
        "architecture" in message.parameters, directory,
    )  # fmt: skip
    spec = ModelSpec(
        name=directory.parent.name, version=directory.name, platform=found.format.platform,
        max_batch_size=1, inputs=tuple(inputs), outputs=tuple(outputs),
        parameters={key: value.string_value for key, value in message.parameters.items()},
    )  # fmt: skip
    return load_file(
        found.format.backend, spec, directory / found.filename,
        Placement("cpu", torch.get_num_threads()),
        trusted=trusted_backends(Settings.from_env(os.environ)),
    )  # fmt: skip


class _Subject:
    """A loaded model and the inputs that it is asked with: all ones, texts of one digit."""

    def __init__(self, backend: Backend, inputs: list[TensorSpec]) -> None:
        self.inputs = inputs
        self._backend = backend
        self._size = FREE_SIZES[0]
        self._answer: Any = None
        if watch := getattr(backend, "watch", None):
            watch(self._see)

    def answers(self, *, batched: bool) -> bool:
        """Tell whether the model takes what is made up."""
        try:
            return bool(self.choose((), batched=batched))
        except BadModel:
            return False

    def choose(self, untyped: Sequence[str], *, batched: bool) -> str:
        """Find the first datatype of the `untyped`, and size of free dims, that the model takes.

        Raises BadModel with the model's first refusal.
        """
        given, first = self.inputs, ""
        sizes = FREE_SIZES if any(-1 in tensor.dims for tensor in given) else FREE_SIZES[:1]
        for datatype in UNTYPED if untyped else UNTYPED[:1]:
            changed = {"datatype": datatype}
            self.inputs = [
                each.model_copy(update=changed) if each.name in untyped else each for each in given
            ]
            for self._size in sizes:
                try:
                    self.ask(1 if batched else None)
                except Exception as error:  # a border: whatever it raises, the next is tried
                    first = first or said(error)
                else:
                    return datatype
        shapes = ", ".join(
            f"{each.name} {[*([1] if batched else []), *each.dims]} {each.datatype}"
            for each in given
        )
        hint = "give another shape with --input"
        if batched:
            hint = f"give another shape of one row with --input; {NO_BATCH}"
        raise BadModel(f"the model raises when it is asked with {shapes}: {first} ({hint})")

    def ask(self, rows: int | None, factor: int = 1) -> dict[str, Array]:
        """Return all outputs by name; free dims are `factor` times as large as was chosen."""
        arrays = {each.name: self._ones(each, rows, factor) for each in self.inputs}
        with torch.inference_mode():
            answer = self._backend.forward(arrays, frozenset())
        found = answer if self._answer is None else all_outputs(self._answer)
        return {name: _array(name, value) for name, value in found.items()}

    def _see(self, answer: Any) -> None:
        self._answer = answer

    def _ones(self, tensor: TensorSpec, rows: int | None, factor: int) -> Array:
        dims = [self._size * factor if size == -1 else size for size in tensor.dims]
        shape = dims if rows is None else [rows, *dims]
        if tensor.datatype == "BYTES":
            return np.full(shape, b"1", object)
        return np.ones(shape, NUMPY_TYPES[tensor.datatype])


def _array(name: str, value: Any) -> Array:
    """Return one output as an array; raises BadModel for what no answer can carry."""
    if isinstance(value, list) and value and all(isinstance(text, str) for text in value):
        return np.array(value, object)
    found = to_numpy(value) if isinstance(value, torch.Tensor) else np.asarray(value)
    try:
        datatype_of(found)
    except KeyError:
        raise BadModel(
            f"output {name!r} is a {type(value).__name__} of {found.dtype}, which no answer can "
            "carry"
        ) from None
    if found.dtype == object and not isinstance(found.ravel()[0], bytes | str):
        raise BadModel(f"output {name!r} is a {type(value).__name__}, which no answer can carry")
    return found


def _complete(message: Any, subject: _Subject, max_batch_size: int | None) -> list[str]:
    """Declare the model's outputs, and its batch size; return notes."""
    rows = None if max_batch_size == 0 else 1
    small = subject.ask(rows)
    if not small:
        raise BadModel("the model returned nothing: say what comes out with --output NAME:DIMS")
    notes = []
    if rows:
        message.max_batch_size, note = _batch_size(subject, small, max_batch_size)
        notes = [note] if note else []
        if message.max_batch_size > 1:
            message.dynamic_batching.SetInParent()
    if not message.output:
        shapes = _shapes(subject, small, rows)
        declare(message, "output", (_described(name, small[name], shapes[name]) for name in small))
    return notes


def _batch_size(subject: _Subject, small: dict[str, Array], wanted: int | None) -> tuple[int, str]:
    """Return how many rows the model takes together, and a note when that is one alone."""
    odd = next((name for name, array in small.items() if array.shape[:1] != (1,)), None)
    if odd is not None:
        raise BadModel(
            f"output {odd!r} has the shape {list(small[odd].shape)} for one row, without a batch "
            f"dimension: {NO_BATCH}"
        )
    try:
        several = subject.ask(ROWS)
        why = next(
            (
                f"output {name!r} has the shape {list(array.shape)} for {ROWS} rows"
                for name, array in several.items()
                if array.shape[:1] != (ROWS,)
            ),
            "",
        )
    except Exception as error:  # a border: whatever the model raises, it is asked row by row
        why = f"it raises for {ROWS} rows: {said(error)}"
    if not why:
        return wanted or DEFAULT_MAX_BATCH_SIZE, ""
    if wanted is not None and wanted > 1:
        raise BadModel(f"--max-batch-size {wanted}, but the model takes one row at a time: {why}")
    return 1, f"the model takes one row at a time (max_batch_size 1): {why}"


def _shapes(subject: _Subject, small: dict[str, Array], rows: int | None) -> dict[str, list[int]]:
    """Return the outputs' shapes, -1 for the batch and for what follows the inputs' free dims."""
    large = small
    if any(-1 in tensor.dims for tensor in subject.inputs):
        try:
            large = subject.ask(rows, factor=2)
        except Exception:  # a border: a size that it does not take tells nothing
            large = small
    shapes = {}
    for name, array in small.items():
        other = large[name].shape if large[name].ndim == array.ndim else array.shape
        shapes[name] = [
            size if size == bigger else -1 for size, bigger in zip(array.shape, other, strict=True)
        ]
        if rows:
            shapes[name][0] = -1
    return shapes


def _described(name: str, array: Array, shape: list[int]) -> Described:
    datatype = datatype_of(array)
    return Described(name, "STRING" if datatype == "BYTES" else datatype, shape)


def main(repository: Path, name: str, version: str, asked: str) -> None:
    """Print what was learned; a model's own output goes to the errors."""
    logging.disable()
    ours = own_output()
    try:
        learned = learn(repository, name, version, json.loads(asked))
    except BadModel as error:
        learned = {"problem": str(error)}
    except Exception as error:  # a border: whatever the model raises is the answer
        learned = {"problem": f"{type(error).__name__}: {error}"}
    print(json.dumps(learned), file=ours, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4])
