"""Has a loaded model follow its execution policy, unless that changes what it answers.

What the file computes by itself is the measure: the same rows go through both, at every batch size
that the policy makes a difference to.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np

from shared.datatypes import Array
from shared.errors import BadModel
from shared.model_spec import ModelSpec
from worker.backends.base import Backend
from worker.instance.determinism import Make
from worker.instance.execution.buckets import BucketedBackend
from worker.instance.execution.lengths import LengthBackend, resized
from worker.instance.tensor_adapter import adapted
from worker.instance.warmup import Run, run_sizes, said
from worker.repository.config.formats import BY_BACKEND
from worker.repository.execution import ExecutionPolicy, execution_policy

UNCHECKED = "{} is followed unchecked: nothing is known that the model takes, give a model_warmup"


class Execution:
    """A loaded model's policy: `backend`, which takes batches, follows it once one `begin`s."""

    def __init__(self, policy: ExecutionPolicy, own: Backend, spec: ModelSpec) -> None:
        """Compute by `own`, loaded by `backend_spec(spec)`, as its file has it."""
        self._policy = policy
        self._own = own
        self._spec = spec
        self.backend = adapted(own, spec)
        if policy.lengths:
            self.backend = self._of_lengths = LengthBackend(self.backend, spec)
        if policy.buckets:
            self.backend = self._bucketed = BucketedBackend(self.backend)

    @classmethod
    def of(cls, backend: str, spec: ModelSpec, own: Backend) -> Execution:
        """Return a model's; `backend` is a name of `worker.repository.config.formats`."""
        of_triton = BY_BACKEND[backend].triton_backend
        policy = execution_policy(of_triton, spec.parameters, spec.max_batch_size, spec.inputs)
        if policy.lengths and spec.text is not None:  # no text is longer
            longest = spec.text.max_length
            shorter = [each for each in policy.lengths if each < longest]
            policy = policy._replace(lengths=(*shorter, longest))
        return cls(policy, own, spec)

    def begin_unchecked(self) -> str:
        """Follow the policy from now on; return what is to be said of that, empty without one.

        Raises BadModel where it cannot be followed, or the module's own errors.
        """
        if self._policy.of_module:
            self._own.execute_by(self._policy)  # type: ignore[attr-defined]  # torch's backends do
        if self._policy.buckets:
            self._bucketed.sizes = self._policy.buckets
        if self._policy.lengths:
            self._of_lengths.lengths = self._policy.lengths
        return UNCHECKED.format(self._policy) if str(self._policy) else ""

    def begin(self, run: Run, makes: Sequence[Make]) -> str:
        """Follow the policy from now on, if that changes no answer; return a note, mostly empty.

        `run` asks the backend; `makes` give rows that it takes. Raises BadModel where answers
        differ by more than the policy's tolerance, or where there are none any more.
        """
        if not str(self._policy):
            return ""
        before = list(_answers(run, makes, self._sizes()))
        before += _answers(run, self._of_all_lengths(makes), sorted({1, self._spec.batch_rows}))
        unchecked = self.begin_unchecked()
        if not before:
            return unchecked
        for make, size, plain in before:
            self._compare(plain, run, make, size)
        whole = [partial(_resized, makes[-1], self._spec, each) for each in self._policy.lengths]
        notes = [run_sizes(self._spec, run, make) for make in whole or makes[-1:]]
        return "; ".join(filter(None, notes))

    def _of_all_lengths(self, makes: Sequence[Make]) -> list[Make]:
        """Return what makes the rows that are padded most for each length."""
        lengths = self._policy.lengths
        shortest = [shorter + 1 for shorter in (0, *lengths)][: len(lengths)]
        return [partial(_resized, makes[0], self._spec, each) for each in shortest if makes]

    def _sizes(self) -> list[int]:
        buckets = self._policy.buckets
        smaller = [max(1, size - 1) for size in buckets]
        return sorted({1, self._spec.batch_rows, *buckets, *smaller})

    def _compare(self, plain: Mapping[str, Array], run: Run, make: Make, size: int) -> None:
        try:
            other = run(make(size))
        except Exception as error:  # a border: whatever a model raises, its policy is refused
            raise BadModel(f"{self._policy}: a batch of {size} fails: {said(error)}") from error
        for name, expected in plain.items():
            found = difference(expected, other[name])
            if not found <= self._policy.tolerance:
                raise BadModel(
                    f"{self._policy}: output {name!r} is off by {found:.2g} of its largest number "
                    f"in a batch of {size}, execution_tolerance is {self._policy.tolerance:g}"
                )


def _resized(make: Make, spec: ModelSpec, length: int, rows: int) -> Mapping[str, Array]:
    return resized(make(rows), spec, length)


def _answers(
    run: Run, makes: Iterable[Make], sizes: Sequence[int]
) -> Iterator[tuple[Make, int, Mapping[str, Array]]]:
    """Yield what the file itself answers, as far as it takes what is made up."""
    for make in makes:
        for size in sizes:
            try:
                yield make, size, run(make(size))
            except Exception:  # a border: it is cold from here on, warming up said so
                break


def difference(plain: Array, other: Array) -> float:
    """Return how far `other` is from `plain`, see `ExecutionPolicy`; infinite for other shapes."""
    if plain.shape != other.shape:
        return float("inf")
    if plain.dtype.kind not in "fV" and "float" not in plain.dtype.name:
        return float(np.mean(plain != other)) if plain.size else 0.0
    left, right = np.asarray(plain, np.float64), np.asarray(other, np.float64)
    same = (left == right) | (np.isnan(left) & np.isnan(right))
    if same.all():
        return 0.0
    off, largest = np.abs(left - right)[~same].max(), np.abs(left[np.isfinite(left)]).max(initial=0)
    return float(off / largest) if largest and np.isfinite(off) else float("inf")
