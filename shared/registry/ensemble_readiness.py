"""Finds the ensembles that cannot answer now, because a step's model cannot.

Apart from the snapshot: a walk over steps that knows neither instances nor reports.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from typing import NamedTuple

from shared.model_spec import EnsembleStep, ModelSpec

Models = Mapping[str, Mapping[str, ModelSpec]]
DefaultVersion = Callable[[str], str]


class MissingStep(NamedTuple):
    """A sentence that names a step whose model is not ready, and that model's `ModelSpec.key`."""

    said: str
    key: str


def missing_steps(
    models: Models, ready: Set[str], default_version: DefaultVersion
) -> dict[str, MissingStep]:
    """Return for each ensemble version that must wait for a step which one that is.

    `models` are seen by clients, `ready` are the `ModelSpec.key`s of which an instance is ready.
    """
    found = {}
    for versions in models.values():
        for spec in versions.values():
            missing = _missing(spec, models, ready, default_version)
            if missing is not None:
                found[spec.key] = missing
    return found


def _missing(
    spec: ModelSpec, models: Models, ready: Set[str], default_version: DefaultVersion
) -> MissingStep | None:
    """Return the first step that is not ready.

    A step that is an ensemble is ready when its own steps are. Ensembles never form a circle: that
    is seen when they are loaded.
    """
    for number, step in enumerate(spec.steps, 1):
        where = f"step {number} of ensemble '{spec.name}'"
        model = _model(step, models, default_version)
        if model is None:
            version = f" version {step.version}" if step.version else ""
            return MissingStep(f"{where}: model '{step.model}'{version} is not there", step.model)
        if model.key not in ready:
            return MissingStep(f"{where}: model '{step.model}' is not ready", model.key)
        deeper = _missing(model, models, ready, default_version)
        if deeper is not None:
            return MissingStep(f"{where}: {deeper.said}", deeper.key)
    return None


def _model(step: EnsembleStep, models: Models, default_version: DefaultVersion) -> ModelSpec | None:
    versions = models.get(step.model)
    if not versions:
        return None
    return versions.get(step.version or default_version(step.model))
