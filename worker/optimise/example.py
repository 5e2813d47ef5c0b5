"""A module of torch as it is exported: in eval mode, proved to be, with the tensors that it takes.

Example.of(module, message)   learns the outputs: their names, datatypes and free dimensions
example.tensors(batch)        the arguments of `forward` for rows as clients send them
prove_eval(example)           raises unless the module answers rows alike, alone and together
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from shared.datatypes import Array, datatype_of
from shared.errors import BadModel
from shared.model_spec import ModelSpec, TensorSpec
from worker.backends.base import all_outputs
from worker.backends.torch_arrays import to_numpy
from worker.backends.torch_model import TorchBackend
from worker.backends.torch_state_dict import arguments_of
from worker.optimise.figures import Differences, Tolerances
from worker.optimise.quiet import first_sentence
from worker.optimise.rows import MADE_UP_SIZES, Batch, Rows, made_up_rows
from worker.optimise.subjects import Subject, eager_backend
from worker.repository.config.description import Described
from worker.repository.config.image import read_image
from worker.repository.config.tensors import read_tensor

LARGER_SIZES = (MADE_UP_SIZES, (480, 512, 496, 640), (16000, 8000, 12000, 4096))
"""The sizes that are tried for free dimensions: for words, pictures and sounds."""
FEW, MORE = 3, 5
ONE_OUTPUT = "output"
SAME = Tolerances(max_relative=1e-3, min_cosine=0.999, min_agreement=None)


@contextmanager
def in_eval(module: nn.Module) -> Iterator[None]:
    """Keep a module and its parts in eval mode, and restore what each was."""
    before = {each: each.training for each in module.modules()}
    module.eval()
    try:
        left = [name or "the module" for name, each in module.named_modules() if each.training]
        if left:
            raise BadModel(f"eval() leaves {left[0]} in training mode: it overrides train()")
        yield
    finally:
        for each, training in before.items():
            each.training = training


def draft_spec(message: Any) -> ModelSpec:
    """Return the spec of a ModelConfig that has no files yet; raises BadModel naming the field."""
    parameters = {key: value.string_value for key, value in message.parameters.items()}
    try:
        return ModelSpec(
            name=message.name, version="1", platform="", max_batch_size=message.max_batch_size,
            inputs=tuple(read_tensor(item, Path()) for item in message.input), outputs=(),
            image=read_image(message, parameters), parameters=parameters,
        )  # fmt: skip
    except ValueError as error:
        raise BadModel(str(error)) from error


class _Recorder:
    """Calls a module, and keeps the arguments and the answer."""

    def __init__(self, module: nn.Module, spec: ModelSpec) -> None:
        """Ask `module` as a version of `spec`."""
        self._module = module
        self._signature = inspect.signature(module.forward)
        self.tensors: tuple[torch.Tensor, ...] = ()
        self.answer: Any = None
        arguments = arguments_of(module)
        self.backend = TorchBackend(spec, self._call, arguments, torch.device("cpu"))

    def ask(self, batch: Batch) -> None:
        """Ask once; raises the module's own errors."""
        inputs = {name: np.array(array) for name, array in batch.inputs.items()}
        with torch.no_grad():  # exporters refuse what was made in inference_mode
            self.backend.forward(inputs, batch.pixels)

    @property
    def own_names(self) -> list[str]:
        """Return the names that the last answer has for its parts; none where it is in order."""
        if isinstance(self.answer, torch.Tensor):
            return []
        found = list(all_outputs(self.answer))
        return [] if found[0] == "OUTPUT__0" else found

    def _call(self, *tensors: Any, **keywords: Any) -> Any:
        if keywords:
            bound = self._signature.bind(*tensors, **keywords)
            if bound.kwargs:
                raise BadModel(
                    f"forward takes {next(iter(bound.kwargs))!r} behind an argument that no input "
                    "feeds: wrap the module in one that takes the inputs first"
                )
            tensors = bound.args
        self.tensors = tensors
        self.answer = self._module(*tensors)
        return self.answer


@dataclass(frozen=True)
class Example:
    """A module, its spec with outputs, and rows for it; `sizes` are those of free dimensions."""

    module: nn.Module
    spec: ModelSpec
    outputs: tuple[Described, ...]
    sizes: Sequence[int]

    @classmethod
    def of(cls, module: nn.Module, message: Any, names: Sequence[str] = ()) -> Example:
        """Ask the module for its outputs, called `names` in their order where these are given.

        Raises BadModel with the module's own words, or for an answer that cannot be served.
        """
        spec = draft_spec(message)
        recorder, sizes = _accepted(module, spec)
        small = _outputs(recorder, next(made_up_rows(spec, FEW, sizes=sizes).batches(FEW))[1])
        wide = made_up_rows(spec, 2 * MORE, seed=1, sizes=sizes[1:] + sizes[:1])
        large = _outputs(recorder, next(wide.batches(MORE))[1])
        if names and len(names) != len(small):
            raise BadModel(
                f"--output was given {len(names)} times, and the model has the {len(small)} "
                f"outputs {', '.join(small)}"
            )
        if names and (own := recorder.own_names) and [*names] != own:
            raise BadModel(
                f"--output: the model names its outputs {', '.join(own)} itself, leave it out"
            )
        described = _described(small, large, names)
        declared = tuple(
            TensorSpec(name=each.name, datatype=each.datatype, dims=tuple(each.shape[1:]) or (1,),
                       reshape=None if each.shape[1:] else ())
            for each in described
        )  # fmt: skip
        return cls(module, spec.with_changes(outputs=declared), described, sizes)

    def rows(self, count: int, seed: int = 0) -> Rows:
        """Return made-up rows in sizes that the module takes."""
        return made_up_rows(self.spec, count, seed, sizes=self.sizes)

    def ordered_inputs(self) -> list[TensorSpec]:
        """Return the inputs in the order of the arguments that they feed."""
        names = _Recorder(self.module, self.spec).backend.input_names
        return [self.spec.inputs_by_name[name] for name in names]

    def tensors(self, batch: Batch) -> tuple[torch.Tensor, ...]:
        """Return the arguments of `forward` for a batch."""
        recorder = _Recorder(self.module, self.spec)
        recorder.ask(batch)
        return recorder.tensors

    def subject(self) -> Subject:
        """Return the module as one that is compared."""
        return Subject("the original", self.spec, eager_backend(self.module, self.spec))


def _accepted(module: nn.Module, spec: ModelSpec) -> tuple[_Recorder, tuple[int, ...]]:
    """Return a recorder, and the first sizes of free dimensions that the module takes."""
    recorder = _Recorder(module, spec)
    is_free = any(-1 in tensor.dims for tensor in spec.inputs)
    first: Exception | None = None
    for sizes in LARGER_SIZES if is_free else LARGER_SIZES[:1]:
        try:
            recorder.ask(next(made_up_rows(spec, FEW, sizes=sizes).batches(FEW))[1])
        except BadModel:
            raise
        except Exception as error:  # a border: the operator's own code
            first = first or error
        else:
            return recorder, sizes
    shapes = ", ".join(f"{t.name} {[FEW, *t.dims]} {t.datatype}" for t in spec.inputs)
    assert first is not None, "some sizes were tried"
    said = first_sentence(first)
    raise BadModel(
        f"the model raises when it is asked with {shapes}: {said} (give another shape or type of "
        "one row with --input)"
    ) from first


def _outputs(recorder: _Recorder, batch: Batch) -> dict[str, Array]:
    """Return the answer's arrays by name; raises BadModel for what no answer can carry."""
    try:
        recorder.ask(batch)
    except BadModel:
        raise
    except Exception as error:  # a border: the operator's own code
        said = first_sentence(error)
        raise BadModel(f"the model raises for a batch of {batch.rows}: {said}") from error
    answer = recorder.answer
    found = {ONE_OUTPUT: answer} if isinstance(answer, torch.Tensor) else all_outputs(answer)
    if not found:
        raise BadModel("the model returned nothing")
    arrays = {}
    for name, value in found.items():
        if not isinstance(value, torch.Tensor):
            raise BadModel(f"output {name!r} is a {type(value).__name__}, expected a tensor")
        arrays[name] = to_numpy(value)
        if arrays[name].shape[:1] != (batch.rows,):
            raise BadModel(
                f"output {name!r} has the shape {list(arrays[name].shape)} for {batch.rows} rows: "
                "a batch has one row of each output for each row that went in"
            )
    return arrays


def _described(
    small: dict[str, Array], large: dict[str, Array], names: Sequence[str]
) -> tuple[Described, ...]:
    """Describe outputs, with -1 for the batch and for sizes that follow the inputs'."""
    found = []
    for name, given in zip(small, names or small, strict=True):
        a, b = small[name], large[name]
        if a.ndim != b.ndim:
            raise BadModel(f"output {name!r} has now {a.ndim} dimensions, now {b.ndim}")
        try:
            datatype = datatype_of(a)
        except KeyError:
            raise BadModel(f"output {name!r} is of {a.dtype}, which no answer can carry") from None
        sizes = [x if x == y else -1 for x, y in zip(a.shape[1:], b.shape[1:], strict=True)]
        found.append(Described(given, datatype, [-1, *sizes]))
    return tuple(found)


def prove_eval(example: Example) -> None:
    """Raise BadModel unless a module in eval mode answers each row for itself, and always alike.

    Two passes give the same bits, nothing that it keeps changes, and a row alone is answered as
    among others.
    """
    subject, rows = example.subject(), example.rows(MORE, seed=2)
    batch = rows.take(range(MORE))
    before = {name: each.clone() for name, each in example.module.state_dict().items()}
    first, second = subject.asked(batch), subject.asked(batch)
    for name, array in first.items():
        if not np.array_equal(array, second[name], equal_nan=array.dtype.kind in "fc"):
            raise BadModel(
                f"eval() does not make the model steady: two passes over the same rows differ in "
                f"output {name!r}; dropout that is called as a function wants "
                "training=self.training, and noise belongs to training alone"
            )
    for name, each in example.module.state_dict().items():
        if not torch.equal(each, before[name]) and not each.isnan().any():
            raise BadModel(f"eval() does not make the model steady: a pass changes its {name!r}")
    alone = Differences(example.spec)
    for number in range(MORE):
        one = {name: array[number : number + 1] for name, array in batch.inputs.items()}
        answer = subject.asked(Batch(one, batch.pixels, 1))
        alone.add({name: array[number : number + 1] for name, array in first.items()}, answer)
    if faults := alone.faults(SAME, real=False):
        raise BadModel(
            f"a row is answered otherwise alone than among {MORE} ({faults[0]}): the model "
            "computes over its batch, as batch normalisation without running statistics does"
        )
