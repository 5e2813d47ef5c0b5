"""What is to be made faster: a version of a model, the rows to judge by, and where to work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from shared.datatypes import Array
from shared.settings import Settings
from worker.backends.preprocessing import PixelArrays
from worker.devices import Placement
from worker.instance.tensor_adapter import TensorAdapter, backend_spec
from worker.optimise.data_files import read_data
from worker.optimise.rows import Batch, Rows, made_up_rows
from worker.optimise.subjects import Original, Subject, load_version
from worker.repository.config.parameters import THREADS
from worker.repository.models import ServedModel, read_model

CALIBRATION_ROWS = 128
MOST_CHECKED_ROWS = 1000
MADE_UP_ROWS = 64


@dataclass(frozen=True)
class Task:
    """A version and its data; whoever needs rows or the model reads them again."""

    repository: Path
    name: str
    version: str
    settings: Settings
    work: Path
    data: Path | None = None
    label: str = ""
    seed: int = 0
    made_from: Original | None = None
    """The original, named where the file is none that torch can change."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel to another process without what was read."""
        return Task, tuple(getattr(self, each.name) for each in fields(self))

    @cached_property
    def model(self) -> ServedModel:
        """Return the version as it is served, but with as many threads as it is given."""
        read = read_model(self.repository, self.name, self.version)
        parameters = {k: v for k, v in read.spec.parameters.items() if k not in THREADS}
        return replace(read, spec=read.spec.with_changes(parameters=parameters))

    @cached_property
    def rows(self) -> Rows:
        """Return the rows of `data`, else made-up ones; raises BadModel."""
        if self.data is None:
            return self.made_up
        return read_data(self.data, self.model.spec, self.model.asset, self.label)

    @property
    def made_up(self) -> Rows:
        """Return rows of noise, shapes and words."""
        return made_up_rows(self.model.spec, MADE_UP_ROWS, self.seed, self.model.asset)

    def calibration(self) -> list[int]:
        """Return the numbers of the rows that ranges are learnt from: a quarter at most."""
        return self._shuffled()[: self._calibration_count()]

    def checked(self) -> list[int]:
        """Return the numbers of the rows that variants are judged by: none of calibration."""
        after = self._calibration_count()
        return self._shuffled()[after : after + MOST_CHECKED_ROWS]

    def subject(self, file: Path, backend: str, threads: int) -> Subject:
        """Load a file in the version's place, on the CPU."""
        config = replace(self.model.config, backend=backend)
        model = replace(self.model, file=file, config=config)
        return load_version(model, self.settings, Placement("cpu", threads))

    def original(self, threads: int) -> Subject:
        """Load the version itself."""
        return self.subject(self.model.file, self.model.config.backend, threads)

    def _calibration_count(self) -> int:
        return max(1, min(CALIBRATION_ROWS, self.rows.count // 4))

    def _shuffled(self) -> list[int]:
        order = np.random.default_rng(self.seed).permutation(self.rows.count)
        return [int(number) for number in order]


def feeds(task: Task, batch: Batch) -> dict[str, Array]:
    """Return a batch as the file itself takes it: normalised, reshaped, with its masks."""
    spec = task.model.spec
    inside = TensorAdapter(_NOTHING, spec).model_inputs(batch.inputs, batch.pixels)
    pixels = PixelArrays(backend_spec(spec))
    return {
        name: pixels(array) if name in batch.pixels else np.ascontiguousarray(array)
        for name, array in inside.items()
    }


class _Nothing:
    """Stands where only the inputs of an adapter are wanted."""

    def forward(self, inputs: Mapping[str, Array], _pixels: frozenset[str]) -> dict[str, Array]:
        """Return the inputs."""
        return dict(inputs)


_NOTHING = _Nothing()
