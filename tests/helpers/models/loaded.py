"""Model files loaded as an instance loads them, in the test's own process."""

from __future__ import annotations

import builtins
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from shared.datatypes import Array
from shared.model_spec import ModelSpec, TensorSpec
from worker.backends.base import Backend
from worker.backends.loading import load_file
from worker.devices import Placement
from worker.repository.file_kinds import RUN_CODE
from worker.repository.models import read_model

PLAIN: frozenset[str] = frozenset()


def spec(
    inputs: list[TensorSpec], outputs: list[TensorSpec], max_batch_size: int = 8, **parameters: str
) -> ModelSpec:
    """Describe version 1 of a model `m`."""
    return ModelSpec(
        name="m", version="1", platform="p", max_batch_size=max_batch_size,
        inputs=tuple(inputs), outputs=tuple(outputs), parameters=parameters,
    )  # fmt: skip


def tensor(name: str, datatype: str = "FP32", *dims: int, optional: bool = False) -> TensorSpec:
    """Declare a tensor, rows of two unless told."""
    return TensorSpec(name=name, datatype=datatype, dims=dims or (2,), optional=optional)


def load(backend: str, described: ModelSpec, file: Path, *, allow_pickle: bool = False) -> Backend:
    """Load `file` on the CPU with one thread."""
    trusted = RUN_CODE if allow_pickle else ()
    return load_file(backend, described, file, Placement("cpu"), trusted=trusted)


def session_of(backend: Backend) -> Any:
    """Return ONNX Runtime's own session, which knows how the file was really opened."""
    return backend._session


def load_repository(repository: Path, name: str, *, allow_pickle: bool = False) -> Backend:
    """Read a model's config and load what it names."""
    model = read_model(repository, name)
    return load(model.config.backend, model.spec, model.file, allow_pickle=allow_pickle)


def texts(*rows: str) -> Array:
    """Return one BYTES element per row, shape [rows, 1]."""
    return np.array([[row.encode()] for row in rows], dtype=object)


def floats(*rows: list[float]) -> Array:
    return np.array(rows, np.float32)


@contextmanager
def own_imports() -> Iterator[None]:
    """Undo what loading operators' code does to imports."""
    path, finders, usual = [*sys.path], [*sys.meta_path], builtins.__import__
    modules = {**sys.modules}
    try:
        yield
    finally:
        added = tuple(set(sys.path) - set(path))
        sys.path[:], sys.meta_path[:], builtins.__import__ = path, finders, usual
        for name, found in [*sys.modules.items()]:
            if added and _place(found).startswith(added):
                del sys.modules[name]
        sys.modules.update(modules)


def _place(module: ModuleType) -> str:
    place = getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", [])), "")
    return str(place)
