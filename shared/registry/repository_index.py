"""The model repository index: every model version with its state."""

from __future__ import annotations

import math
import time

from shared.model_spec import ModelSpec
from shared.registry.snapshot import Snapshot

UNLOADED = "unloaded"


def repository_index(snapshot: Snapshot, *, ready_only: bool = False) -> list[dict[str, str]]:
    """Return each model version with its state, by name; `reason` says why one is UNAVAILABLE.

    Of a READY one it says what is wrong all the same, as that it is served cold. A model that is
    not loaded, or whose directory could not be read, has no version. Source: Triton's model
    repository extension,
    https://github.com/triton-inference-server/server/blob/main/docs/protocol.
    """
    names = snapshot.models.keys() | snapshot.failures.keys() | snapshot.known
    entries = [entry for name in sorted(names) for entry in _model_entries(snapshot, name)]
    return [entry for entry in entries if entry["state"] == "READY" or not ready_only]


def _model_entries(snapshot: Snapshot, name: str) -> list[dict[str, str]]:
    versions = snapshot.models.get(name, {})
    states = {version: _state(snapshot, spec) for version, spec in versions.items()}
    for key, reason in snapshot.reasons.items():
        model, _, version = key.partition("@")[0].partition("/")
        if model == name and version:
            states.setdefault(version, ("UNAVAILABLE", reason))
    entries = [
        {"name": name, "version": version, "state": state, "reason": reason}
        for version, (state, reason) in sorted(states.items(), key=lambda item: int(item[0]))
    ]
    reason = snapshot.reasons.get(name) or snapshot.failures.get(
        name, snapshot.notes.get(name, UNLOADED)
    )
    if not entries or name in snapshot.reasons:
        entries.append({"name": name, "state": "UNAVAILABLE", "reason": reason})
    return entries


def _state(snapshot: Snapshot, spec: ModelSpec) -> tuple[str, str]:
    if spec.key in snapshot.standby and spec.key in snapshot.ready:
        left = max(0.0, snapshot.standby[spec.key] - time.time())
        until = f" for {left:.0f} s more" if math.isfinite(left) else ""
        return "READY", f"on standby: answers requests that name it{until}"
    if spec.key in snapshot.ready:
        serving = snapshot.served.get(spec.name)
        if serving is not None and serving.canary == spec.version:
            left = max(0.0, serving.canary_until - time.time())
            return "READY", f"canary: takes all requests in {left:.0f} s unless it fails"
        taken_back = serving.taken_back.get(spec.version, "") if serving else ""
        lacks, warning = snapshot.degraded.get(spec.key, ""), snapshot.warnings.get(spec.key, "")
        return "READY", taken_back or "; ".join(filter(None, (lacks, warning)))
    if spec.key in snapshot.reasons:
        return "UNAVAILABLE", snapshot.reasons[spec.key]
    if spec.key in snapshot.loading:
        return "LOADING", ""
    return "UNAVAILABLE", "no worker has loaded it"
