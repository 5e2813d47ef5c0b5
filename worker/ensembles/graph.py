"""Finds the steps that a request needs, and the outputs that their models are asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from shared.model_spec import EnsembleStep, ModelSpec

Steps = Mapping[int, tuple[str, ...]]
"""The numbers of the steps to run, and which outputs each one's model is asked for."""


class Graph:
    """An ensemble's steps, by the tensors that lead from one to the next."""

    def __init__(self, spec: ModelSpec) -> None:
        """Take `spec` as it was checked at load: each tensor has one source, none its own."""
        self.spec = spec
        self._sources = {
            tensor: number
            for number, step in enumerate(spec.steps)
            for tensor in step.output_map.values()
        }
        self._plans: dict[tuple[str, ...], Steps] = {}

    def needed(self, outputs: tuple[str, ...]) -> Steps:
        """Return the steps to run for the wanted outputs of the ensemble, all of them when empty.

        Steps that nobody's answer depends on are left out, as Triton leaves them out.
        """
        names = tuple(sorted(outputs)) or tuple(tensor.name for tensor in self.spec.outputs)
        if names not in self._plans:
            self._plans[names] = self._plan(names)
        return self._plans[names]

    def _plan(self, outputs: Iterable[str]) -> Steps:
        wanted, numbers, open_tensors = set(outputs), set[int](), list(outputs)
        while open_tensors:
            number = self._sources.get(open_tensors.pop())
            if number is None or number in numbers:
                continue  # an input of the ensemble, or a step that is known to be needed
            numbers.add(number)
            read = self.spec.steps[number].input_map.values()
            wanted.update(read)
            open_tensors += read
        return {number: _asked(self.spec.steps[number], wanted) for number in sorted(numbers)}


class ReadyStep(NamedTuple):
    """A step whose inputs are all there: its number and itself."""

    number: int
    step: EnsembleStep


def ready_steps(
    spec: ModelSpec, pending: Iterable[int], known: Mapping[str, object]
) -> list[ReadyStep]:
    """Return those of the pending steps whose inputs are all known."""
    steps = [ReadyStep(number, spec.steps[number]) for number in pending]
    return [each for each in steps if known.keys() >= set(each.step.input_map.values())]


def _asked(step: EnsembleStep, wanted: set[str]) -> tuple[str, ...]:
    return tuple(name for name, tensor in step.output_map.items() if tensor in wanted)
