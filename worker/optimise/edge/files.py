"""The model files of a bundle: what each is, and how it is asked to be compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shared.datatypes import NUMPY_TYPES
from shared.model_spec import TensorSpec
from worker.optimise.subjects import Subject

Say = Callable[[str], None]


@dataclass(frozen=True)
class EdgeFile:
    """One model file; `opened` is it as a model that is asked, for as long as the block runs."""

    path: Path
    what: str
    precision: str
    operators: Sequence[Mapping[str, Any]]
    opened: Callable[[], AbstractContextManager[Subject]]
    is_needed: bool = True


@dataclass(frozen=True)
class EdgeFiles:
    """All model files of a bundle, their tensors, and the versions of what made them."""

    files: Sequence[EdgeFile]
    inputs: Sequence[Mapping[str, Any]]
    outputs: Sequence[Mapping[str, Any]]
    versions: Mapping[str, str]
    notes: list[str] = field(default_factory=list)


def tensor_entry(tensor: TensorSpec, shape: Sequence[int], **more: Any) -> dict[str, Any]:
    """Return a tensor as the manifest has it."""
    numpy_type = NUMPY_TYPES[tensor.datatype].name
    entry = {"name": tensor.name, "datatype": tensor.datatype, "numpy_type": numpy_type}
    return {**entry, "shape": [*shape], **more}
