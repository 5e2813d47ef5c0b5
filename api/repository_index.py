"""What the model repository index lists, and why models are not loaded or unloaded by request."""

from __future__ import annotations

from typing import NoReturn

from shared.errors import BadRequest
from shared.model_spec import ModelSpec
from shared.registry import Snapshot

CONTROL_REFUSED = (
    "explicit model load / unload is not allowed if polling is enabled, nor in the model control "
    "mode of this server, which is none: restart the worker after a change in the repository"
)
"""Begins with Triton's sentence for it, for which people search."""


def repository_index(snapshot: Snapshot, *, ready_only: bool = False) -> list[dict[str, str]]:
    """Return each model version with its state, by name; `reason` says why one is UNAVAILABLE.

    A model whose directory could not be read has no version. Source: Triton's model repository
    extension, https://github.com/triton-inference-server/server/blob/main/docs/protocol.
    """
    entries = []
    for name in sorted(snapshot.models.keys() | snapshot.failures.keys()):
        versions = snapshot.models.get(name, {})
        for version in sorted(versions, key=int):
            state, reason = _state(snapshot, versions[version])
            entries.append({"name": name, "version": version, "state": state, "reason": reason})
        if not versions:
            reason = snapshot.failures[name]
            entries.append({"name": name, "state": "UNAVAILABLE", "reason": reason})
    return [entry for entry in entries if entry["state"] == "READY" or not ready_only]


def _state(snapshot: Snapshot, spec: ModelSpec) -> tuple[str, str]:
    if spec.key in snapshot.ready:
        return "READY", ""
    if spec.name in snapshot.failures:
        return "UNAVAILABLE", snapshot.failures[spec.name]
    if spec.key in snapshot.loading:
        return "LOADING", ""
    return "UNAVAILABLE", "no worker has loaded it"


def refuse_model_control() -> NoReturn:
    """Refuse to load or unload any model, known or not, as Triton does in this control mode."""
    raise BadRequest(CONTROL_REFUSED)
