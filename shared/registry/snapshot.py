"""The registry at one moment: which versions clients see, and which of them are ready."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from pydantic import BaseModel, ConfigDict

from shared.model_spec import ModelSpec
from shared.registry.desired_state import Serving, SupervisorReport
from shared.registry.ensemble_readiness import missing_steps
from shared.registry.other_files import other_files

State = Literal["starting", "ready", "failed"]


class InstanceRecord(BaseModel):
    """One worker process: its model and place, whether it takes requests, its figures.

    What it has done is as of its supervisor's last heartbeat; `capacity_per_second` is how many
    requests it answers a second while its batches are full, 0 when none was yet. `row_limit` is how
    many rows at once its memory holds when that is less than the model's batch, else 0. `reason`
    says why it is not ready, `note` what is wrong with a ready one. `device` is the one that it
    really runs on, a GPU's `uuid` beside it; `memory_bytes` is what it took there once warm. It
    failed `device_faults` times since its supervisor started, and is `device_closed` for a reason.
    It reads bodies in the `shared_memory` and the `body_stores` of these tokens, in none without.
    """

    model_config = ConfigDict(frozen=True)

    id: str
    supervisor: str
    model: str
    version: str
    revision: int = 0
    state: State
    device: str = "cpu"
    uuid: str = ""
    host: str = ""
    pid: int = 0
    reason: str = ""
    note: str = ""
    answered_count: int = 0
    requests_per_second: float = 0.0
    capacity_per_second: float = 0.0
    last_batch_rows: int = 0
    last_batch_seconds: float = 0.0
    row_limit: int = 0
    memory_bytes: int = 0
    device_faults: int = 0
    device_closed: str = ""
    shared_memory: str = ""
    body_stores: str = ""

    @property
    def model_key(self) -> str:
        """Return the `ModelSpec.key` of the version that it runs."""
        return f"{self.model}/{self.version}" + (f"@{self.revision}" if self.revision else "")


@dataclass(frozen=True)
class Snapshot:
    """Models by name and version, and which of them are served.

    A version is seen when requests go to it, a living supervisor wants to serve it, or it is on
    `standby`: it was replaced, and answers who names it until a second since the epoch. By
    `ModelSpec.key`, as that: `ready`, `loading` are those with an instance that is ready, starting,
    `drain_rates` the requests per second that the ready ones answer when enough wait. `known` are
    all models that living supervisors report, also those not wanted; `is_complete` tells whether
    these have read their whole repositories. `log` are the log settings that were set,
    `trace` those of traces, by model, of all models under "". No
    change after the one that `changes` counts need be in it.

    Three say why something is not there: `failures` of each model that nobody serves, `reasons` of
    each content (`ModelSpec.key`) and each model whose directory cannot be read, `notes` of models
    that are not wanted any more, since their last change was undone. `warnings` say what is wrong
    with contents that are ready, `degraded` of how many of their instances they lack, and why.

    `memories` are the tokens of the shared memory that all instances of a content see, `stores`
    those of the body stores that they know.

    Devices go by host and name: how often each failed, and why those are closed that are.
    """

    models: dict[str, dict[str, ModelSpec]] = field(default_factory=dict)
    served: dict[str, Serving] = field(default_factory=dict)
    ready: frozenset[str] = frozenset()
    loading: frozenset[str] = frozenset()
    drain_rates: dict[str, float] = field(default_factory=dict)
    known: frozenset[str] = frozenset()
    supervised: bool = False
    is_complete: bool = True
    log: dict[str, int] = field(default_factory=dict)
    trace: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    warnings: dict[str, str] = field(default_factory=dict)
    degraded: dict[str, str] = field(default_factory=dict)
    device_faults: dict[tuple[str, str], int] = field(default_factory=dict)
    closed_devices: dict[tuple[str, str], str] = field(default_factory=dict)
    changes: int = -1
    standby: dict[str, float] = field(default_factory=dict)
    memories: dict[str, str] = field(default_factory=dict)
    stores: dict[str, str] = field(default_factory=dict)

    def drain_rate(self, model_key: str) -> float:
        """Return the requests per second that a version's instances answer when enough wait.

        0 when that is not known yet.
        """
        return self.drain_rates.get(model_key, 0.0)

    def default_version(self, name: str) -> str:
        """Return which of a model's versions takes requests without one."""
        serving, versions = self.served.get(name), self.models[name]
        if serving is not None and serving.default in versions:
            return serving.default
        return max(versions, key=int)

    def is_ready(self, name: str) -> bool:
        """Tell whether a model takes requests, by all versions that are to."""
        return name in self.models and self._served_keys(name) <= self.ready

    def all_ready(self) -> bool:
        """Tell whether all models take requests.

        A version that fails to load beside one that serves does no harm. Without any model it is
        enough that a supervisor is there.
        """
        return (
            (self.supervised or bool(self.models))
            and self.is_complete
            and not self.failures
            and all(map(self.is_ready, self.models))
        )

    def _served_keys(self, name: str) -> set[str]:
        """Return the versions that must be ready for the model to be ready."""
        if name in self.served:
            return set(self.served[name].versions.values())
        if name in self.known:  # it is not decided yet
            return {name}
        return {spec.key for spec in self.models[name].values()}


def snapshot_of(
    specs: Iterable[ModelSpec],
    living: list[InstanceRecord],
    served: Mapping[str, Serving],
    reports: list[SupervisorReport],
    log: dict[str, int],
    changes: int = 0,
) -> Snapshot:
    """Put a snapshot together from the registry; `living`, `reports` are of living supervisors."""
    standby = _standby(served, reports)
    models = _seen_models(specs, served, reports, standby)
    drain_rates = _drain_rates(living)
    reasons, failures = _reasons(models, living, reports)
    # One of its instances is ready: that another one failed is no reason for clients.
    for key in drain_rates:
        name = key.partition("/")[0]
        reasons.pop(key, None)
        if name not in served or key in served[name].versions.values():
            failures.pop(name, None)
    reported = [item for report in reports for item in report.models.items()]
    found = Snapshot(
        models=models,
        served={name: serving for name, serving in served.items() if name in models},
        ready=frozenset(drain_rates),
        loading=frozenset(record.model_key for record in living if record.state == "starting"),
        drain_rates=drain_rates,
        known=frozenset(name for name, model in reported if model.exists),
        supervised=bool(reports),
        is_complete=all(report.complete for report in reports),
        log=log,
        failures=failures,
        reasons=reasons,
        notes={name: model.note for name, model in reported if model.note},
        changes=changes,
        standby=standby,
        warnings=_warnings(living, reports),
        degraded=_degraded(living),
        device_faults={
            (each.host, each.device): each.device_faults
            for each in living
            if each.device_faults or each.device != "cpu"
        },
        closed_devices={
            (each.host, each.device): each.device_closed for each in living if each.device_closed
        },
        memories=_common(living, lambda record: record.shared_memory),
        stores=_common(living, lambda record: record.body_stores),
    )
    return _waiting_for_steps(found)


def _warnings(living: list[InstanceRecord], reports: list[SupervisorReport]) -> dict[str, str]:
    """Return what is wrong with contents that serve: as they run, or that others cannot replace."""
    found = {each.model_key: each.note for each in living if each.note}
    ready = [(each.model_key, each.host) for each in living if each.state == "ready"]
    for key, odd in other_files(ready, reports).items():
        found[key] = f"{found[key]}; {odd}" if key in found else odd
    for report in reports:
        failed = {
            f"{name}/{version}": told.reason
            for name, model in report.models.items()
            for version, told in model.versions.items()
            if told.state == "failed"
        }
        for key in report.running:
            if reason := failed.get(key.partition("@")[0]):
                refused = f"serves as it was loaded: {reason}"
                found[key] = f"{found[key]}; {refused}" if key in found else refused
    return found


def _degraded(living: list[InstanceRecord]) -> dict[str, str]:
    """Return what contents lack that are ready, but not with all of their instances."""
    found = {}
    for key in {record.model_key for record in living if record.state == "ready"}:
        records = [record for record in living if record.model_key == key]
        missing = [record for record in records if record.state != "ready" and record.reason]
        if missing:
            found[key] = (
                f"degraded: {len(records) - len(missing)} of {len(records)} instances: "
                f"{missing[0].reason}"
            )
    return found


def _common(
    living: list[InstanceRecord], token_of: Callable[[InstanceRecord], str]
) -> dict[str, str]:
    """Return by content the token that all of its instances have, empty where they differ."""
    found: dict[str, str] = {}
    for record in living:
        if record.state != "failed":
            token = token_of(record)
            if found.setdefault(record.model_key, token) != token:
                found[record.model_key] = ""
    return found


def _standby(served: Mapping[str, Serving], reports: list[SupervisorReport]) -> dict[str, float]:
    """Return the contents that were replaced by another version, and until when each answers."""
    ends = {key: until for report in reports for key, until in report.standby.items()}
    found, wanted = {}, _wanted(reports)
    for key in {key for report in reports for key in report.running}:
        name, _, version = key.partition("@")[0].partition("/")
        until = ends.get(key, math.inf)  # its supervisor may not know yet that it was replaced
        is_replaced = name in served and version not in served[name].versions
        if is_replaced and until and key not in wanted.get(name, ()):
            found[key] = until
    return found


def _seen_models(
    specs: Iterable[ModelSpec],
    served: Mapping[str, Serving],
    reports: list[SupervisorReport],
    standby: Mapping[str, float],
) -> dict[str, dict[str, ModelSpec]]:
    """Return by name and version the registered versions that clients see."""
    wanted = _wanted(reports)
    models: dict[str, dict[str, ModelSpec]] = {}
    for spec in specs:
        if spec.key in standby or _is_seen(spec, served.get(spec.name), wanted):
            versions = models.setdefault(spec.name, {})
            if spec.version not in versions or versions[spec.version].revision < spec.revision:
                versions[spec.version] = spec
    return models


def _drain_rates(living: list[InstanceRecord]) -> dict[str, float]:
    """Return of every content with a ready instance what all of these answer a second.

    An ensemble's process knows no batches of its own: what it answered of late counts.
    """
    drain_rates: dict[str, float] = {}
    for record in living:
        if record.state == "ready":
            rate = max(record.capacity_per_second, record.requests_per_second)
            drain_rates[record.model_key] = drain_rates.get(record.model_key, 0.0) + rate
    return drain_rates


def _reasons(
    models: dict[str, dict[str, ModelSpec]],
    living: list[InstanceRecord],
    reports: list[SupervisorReport],
) -> tuple[dict[str, str], dict[str, str]]:
    """Return why contents, and models that cannot be read, are not there; and the same by name."""
    seen = {spec.key for versions in models.values() for spec in versions.values()}
    failed = [record for record in living if record.reason and record.model_key in seen]
    reported = [item for report in reports for item in report.models.items()]
    reasons = {record.model_key: record.reason for record in failed}
    # What a supervisor reports counts more than what it says of one of its instances.
    reasons |= {
        version.key: version.reason
        for _, model in reported
        for version in model.versions.values()
        if version.state == "failed"
    }
    reasons |= {name: model.reason for name, model in reported if model.reason}
    by_name = {record.model: record.reason for record in failed}
    by_name |= {name: model.failure for name, model in reported if model.failure}
    return reasons, by_name


def _waiting_for_steps(found: Snapshot) -> Snapshot:
    """Return the snapshot with those ensembles not ready whose steps are not, and say which one."""
    missing = {
        key: step
        for key, step in missing_steps(found.models, found.ready, found.default_version).items()
        if key in found.ready  # else it has a reason of its own
    }
    reasons = {}
    for key, step in missing.items():
        why = found.reasons.get(step.key) or found.failures.get(step.key.partition("/")[0])
        reasons[key] = f"{step.said}: {why}" if why else step.said
    loading = {key for key, step in missing.items() if step.key in found.loading}
    ready = found.ready - missing.keys()
    ready_names = {key.partition("/")[0] for key in ready}
    failures = {key.partition("/")[0]: reasons[key] for key in missing.keys() - loading}
    return replace(
        found,
        ready=ready,
        loading=found.loading | loading,
        reasons=found.reasons | reasons,
        failures=found.failures
        | {name: why for name, why in failures.items() if name not in ready_names},
    )


def _wanted(reports: list[SupervisorReport]) -> dict[str, set[str]]:
    """Return the contents that supervisors want to serve, of every model that they report."""
    wanted: dict[str, set[str]] = {}
    for report in reports:
        for name, model in report.models.items():
            wanted.setdefault(name, set()).update(each.key for each in model.versions.values())
    return wanted


def _is_seen(spec: ModelSpec, serving: Serving | None, wanted: dict[str, set[str]]) -> bool:
    """Tell whether clients see a registered version; one about to leave they do not."""
    if serving is not None and spec.version in serving.versions:
        return serving.versions[spec.version] == spec.key
    if spec.name in wanted:
        return spec.key in wanted[spec.name]
    return serving is None
