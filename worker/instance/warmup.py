"""Runs a model before it is ready, so that no client pays for the first pass of a batch size.

The operator's samples may keep a model from being served. What is made up in their place may not:
a model that refuses it is served cold. One that answers it is held to its config as ever.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from math import prod
from typing import NamedTuple, NoReturn

import numpy as np

from shared.datatypes import NUMPY_TYPES, Array, from_bytes
from shared.errors import BadModel, BadModelOutput, FerryError, text_of
from shared.model_spec import ModelSpec
from worker.backends.base import Backend
from worker.instance.health.device_probe import Probe, no_device
from worker.instance.made_up import Guess, Guesses, made_up
from worker.instance.out_of_memory import is_out_of_memory
from worker.instance.outputs import fitted_outputs
from worker.job import DEVICE_IS_LOST
from worker.meter import Meter
from worker.repository.config.warmup import WarmupInput, WarmupSample

log = logging.getLogger(__name__)

SAMPLE_SEED = 5
SEARCH_SECONDS = 10.0
"""Until no further inputs are made up for a model that refused all so far."""
SLOW_REFUSAL_SECONDS = 1.0
SLOW_REFUSALS = 2
"""So many refusals that took longer end the search: larger inputs would take longer still. One does
not: a first pass readies the device and compiles, and a machine with much to do stalls one."""
LONGEST_WARMUP_SECONDS = 60.0
"""Until batch sizes that were not run yet are left cold."""
SAME_ANSWERS = 20
"""Until no more is made up for a model that broke its contract as often in the same way: more than
the sizes that are tried with the first values, so that others are among them."""
MAX_SAID = 300
MIXED_SIGNS = (
    "tensors to be on the same device", "on cpu or on the same device", "two different devices",
    "weight type (torch.FloatTensor) should be the same",
)  # fmt: skip
MIXED_DEVICES = (
    "its code makes tensors on another device than the one that it runs on: make them with "
    "device=x.device, register them as buffers, or place it with KIND_CPU ({})"
)

Run = Callable[[Mapping[str, Array]], dict[str, Array]]


class MadeUpPasses:
    """Runs a model on inputs that are not the operator's, each pass noted for the supervisor.

    Should the process die in one, or not come back, the next one is not asked such things.
    """

    def __init__(
        self,
        spec: ModelSpec,
        backend: Backend,
        pixels: frozenset[str],
        meter: Meter,
        probe: Probe = no_device,
    ) -> None:
        """Ask `backend`, whose inputs named in `pixels` are pictures, and `probe` its device."""
        self._spec = spec
        self._pixels = pixels
        self._backend = backend
        self._meter = meter
        self._probe = probe

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return copies of the declared outputs; raises the model's own errors, or BadModelOutput.

        Copies, for a model may answer with a buffer of its own, or with its input.
        """
        self._meter.making_up_since = time.monotonic()
        try:
            outputs = self._backend.forward(inputs, self._pixels)
        except BaseException:
            if fault := self._probe():
                end_lost(fault)
            raise
        fitting = fitted_outputs(outputs, self._spec, len(next(iter(inputs.values()))))
        return {name: np.array(array) for name, array in fitting.items()}

    def end(self) -> None:
        """Tell the supervisor that the last one is over."""
        self._meter.making_up_since = 0.0


def end_lost(fault: str) -> NoReturn:
    """End a process at once whose device takes no more work, as after an assertion on a GPU.

    subtle: an exception would be one more refusal of what is made up, to all who ask a model that.
    """
    log.error("the device takes no more work, the process ends: %s", fault)
    os._exit(DEVICE_IS_LOST)


class WarmUp(NamedTuple):
    """The guess that the model took, None for none, and why it is served cold, if it is."""

    guess: Guess | None
    cold: str = ""


def warm_up(spec: ModelSpec, run: Run, before: Guess | None = None) -> WarmUp:
    """Run every batch size in 1, 2, 4 ... max_batch_size on inputs that the model takes.

    What it took `before`, in an earlier process, is tried first: it alone tells whether that works.
    Raises BadModelOutput of a model that breaks its contract whatever is made up, and BadModel of
    one that computes with tensors of two devices, as it would for every request.
    """
    guess, refusals = _taken(spec, run, before)
    if guess is None:
        if all(map(_mixes_devices, refusals)):
            raise BadModel(MIXED_DEVICES.format(said(refusals[0])))
        if (broken := _broken_contract(spec, refusals)) is not None:
            raise broken
        return WarmUp(None, f"what is made up to warm it fails: {said(refusals[0])}")
    return WarmUp(guess, run_sizes(spec, run, lambda rows: made_up(spec, guess, rows)))


def _mixes_devices(error: BaseException) -> bool:
    return any(sign in text_of(error) for sign in MIXED_SIGNS)


def _broken_contract(spec: ModelSpec, refusals: Sequence[BaseException]) -> BadModelOutput | None:
    """Return the one way in which all answers differ from what the config declares.

    Inputs of several values, and of several sizes where they are free, led to it: it is not theirs.
    """
    answers = [error for error in refusals if isinstance(error, BadModelOutput)]
    is_free = any(-1 in tensor.dims for tensor in spec.inputs)
    if len(answers) > is_free and len({error.message for error in answers}) == 1:
        return answers[0]
    return None


def _taken(
    spec: ModelSpec, run: Run, before: Guess | None
) -> tuple[Guess | None, list[BaseException]]:
    """Return the first guess of which the model takes a row, or None, and its refusals so far."""
    guesses, began = Guesses(spec), time.monotonic()
    refusals, slow = list[BaseException](), 0
    for guess in chain([before] if before else [], guesses):
        asked = time.monotonic()
        try:
            run(made_up(spec, guess, 1))
        except BaseException as error:  # a border: whatever a model raises, the next guess is tried
            refusals.append(error.with_traceback(None))
            guesses.refused(guess, text_of(error))
        else:
            return guess, refusals
        if _is_settled(refusals) or is_out_of_memory(refusals[-1]):
            break
        now, answered = time.monotonic(), isinstance(refusals[-1], BadModelOutput)
        slow += not answered and now - asked > SLOW_REFUSAL_SECONDS
        if slow == SLOW_REFUSALS or now - began > SEARCH_SECONDS:
            break
    return None, refusals


def _is_settled(refusals: Sequence[BaseException]) -> bool:
    """Tell whether nothing but one broken contract was heard for long enough."""
    last = [error for error in refusals[-SAME_ANSWERS:] if isinstance(error, BadModelOutput)]
    return len(last) == SAME_ANSWERS and len({error.message for error in last}) == 1


def run_sizes(spec: ModelSpec, run: Run, rows_of: Callable[[int], Mapping[str, Array]]) -> str:
    """Run every batch size but 1; returns from which one on the model is cold, and why.

    Raises BadModelOutput of a model that takes one row and breaks its contract with several alike.
    """
    began = time.monotonic()
    for rows in batch_sizes(spec.batch_rows)[1:]:
        if time.monotonic() - began > LONGEST_WARMUP_SECONDS:
            return (
                f"batches from {rows} rows on, warming it took over {LONGEST_WARMUP_SECONDS:.0f} s"
            )
        try:
            run(rows_of(rows))
        except BadModelOutput:
            raise
        except BaseException as error:  # a border: what it raises is no client's yet
            return f"a batch of {rows} made up rows fails: {said(error)}"
    return ""


def said(error: BaseException) -> str:
    """Return an error's class and the last line of its text, which is where torch says it."""
    last = (text_of(error).strip().splitlines() or [""])[-1].strip()
    # torch.jit's errors say the class by themselves, ours are sentences.
    if last.partition(":")[0].endswith("Error") or isinstance(error, FerryError):
        return last[:MAX_SAID]
    return f"{type(error).__name__}: {last}"[:MAX_SAID]


def run_samples(spec: ModelSpec, backend: Backend, samples: Sequence[WarmupSample]) -> None:
    """Run a config's `model_warmup`; raises BadModel naming the sample on which the model fails."""
    for sample in samples:
        try:
            for _ in range(sample.count):
                outputs = backend.forward(sample_rows(sample, spec, sample.rows), frozenset())
                fitted_outputs(outputs, spec, sample.rows)
        except BaseException as error:  # a border: whatever a model raises, the sample is named
            raise BadModel(f"model_warmup {sample.name!r}: {text_of(error)}") from error


def sample_rows(sample: WarmupSample, spec: ModelSpec, rows: int) -> dict[str, Array]:
    """Return a sample's row `rows` times; nobody else holds these arrays."""
    inputs = {}
    for item in sample.inputs:
        row = _row(item)
        inputs[item.name] = np.stack([row] * rows) if spec.batched else np.array(row)
    return inputs


def _row(item: WarmupInput) -> Array:
    """Return the values of one row: random numbers from 0 to 1, whole ones 0 or 1, seeded."""
    if item.file is not None:
        return from_bytes(item.file.read_bytes(), item.datatype, item.dims)
    dtype = NUMPY_TYPES[item.datatype]
    if item.kind == "zero":
        return np.full(item.dims, b"" if dtype.hasobject else 0, dtype)
    random = np.random.default_rng(SAMPLE_SEED)
    if dtype.hasobject:
        words = [random.bytes(4).hex().encode() for _ in range(prod(item.dims))]
        return np.array(words, object).reshape(item.dims)
    if dtype.kind in "iub":
        return random.integers(0, 2, item.dims).astype(dtype)
    return random.random(item.dims).astype(dtype)


def batch_sizes(largest: int) -> list[int]:
    """Return the powers of two up to `largest`, and `largest` itself."""
    sizes = [1]
    while sizes[-1] * 2 <= largest:
        sizes.append(sizes[-1] * 2)
    return sizes if sizes[-1] == largest else [*sizes, largest]
