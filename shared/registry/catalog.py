"""The models as this API process last saw them in the registry."""

from __future__ import annotations

import random
import time
from threading import Lock

from shared.errors import ModelNotReady, RedisUnavailable, UnknownModel
from shared.model_spec import ModelSpec
from shared.registry.log_settings import LogLevel
from shared.registry.registry import Registry
from shared.registry.snapshot import Snapshot

FRESH_SECONDS = 0.5
LOOK_SECONDS = 0.1
"""How often it is asked whether requests are to go elsewhere: a rollback waits no longer."""
REFUSAL_FRESH_SECONDS = 0.05
"""How old the copy may be when a request is refused because of it."""
RESTART_GRACE_SECONDS = 15.0
"""How long a model that was ready still takes requests while no instance of it lives.

Its instances may be restarting; what is accepted waits on the queue until its own deadline.
"""


class Catalog:
    """A copy of the registry, at most half a second old, shared by the process's threads."""

    def __init__(self, registry: Registry, log_level: LogLevel | None = None) -> None:
        """Start empty; the first look reads the registry, and each one sets the `log_level`."""
        self._registry = registry
        self._log_level = log_level
        self._snapshot = Snapshot()
        self._read_at = float("-inf")
        self._next_look = float("inf")
        self._changes = 0
        self._ready_at: dict[str, float] = {}
        self._lock = Lock()

    def find(self, name: str, version: str | None = None) -> ModelSpec:
        """Return a registered model, the version that serves unless one is named.

        Raises UnknownModel.
        """
        try:
            return _find(self._current(), name, version)
        except UnknownModel:
            return _find(self._current(REFUSAL_FRESH_SECONDS), name, version)

    def serving(self, name: str, version: str | None = None) -> ModelSpec:
        """Return a model that takes requests; raises UnknownModel or ModelNotReady.

        Without a version it is the one that serves, or one drawn by the weights of a split.
        """
        try:
            return self._serving(self._current(), name, version)
        except (UnknownModel, ModelNotReady):
            return self._serving(self._current(REFUSAL_FRESH_SECONDS), name, version)

    def _serving(self, snapshot: Snapshot, name: str, version: str | None) -> ModelSpec:
        reason = snapshot.failures.get(name)
        if reason and name not in snapshot.models:
            raise ModelNotReady(reason)
        spec = _find(snapshot, name, version or _drawn(snapshot, name))
        last_ready = self._ready_at.get(spec.key, float("-inf"))
        if self._read_at - last_ready > RESTART_GRACE_SECONDS:
            reason = snapshot.reasons.get(spec.key, reason)
            raise ModelNotReady(reason or f"model '{name}' is not ready: no worker has loaded it")
        return spec

    def is_ready(self, name: str, version: str | None = None) -> bool:
        """Tell whether an instance serves the model now; raises UnknownModel."""
        snapshot = self._current()
        if name in snapshot.failures and name not in snapshot.models:
            return False
        return self.find(name, version).key in snapshot.ready

    def drain_rate(self, model_key: str) -> float:
        """Return how many requests per second the model's instances answered lately."""
        return self._current().drain_rate(model_key)

    def all_ready(self) -> bool:
        """Tell whether every model is served now, with Redis answering."""
        try:
            self._registry.ping()
            return self._current().all_ready()
        except RedisUnavailable:
            return False

    def specs(self) -> list[ModelSpec]:
        """Return the version that serves of every model, by name."""
        return [self.find(name) for name in sorted(self._current().models)]

    def snapshot(self) -> Snapshot:
        """Return the registry as of half a second ago at most."""
        return self._current()

    def versions(self, name: str | None, version: str | None) -> list[ModelSpec]:
        """Return every version that is seen: of all models, of one, or the one named.

        Raises UnknownModel.
        """
        if name is not None:
            self.find(name, version)
        specs = [
            spec
            for versions in self._current().models.values()
            for spec in versions.values()
            if name in (None, spec.name) and version in (None, spec.version)
        ]
        return sorted(specs, key=lambda spec: (spec.name, int(spec.version)))

    def shadow_of(self, spec: ModelSpec) -> ModelSpec | None:
        """Return the version that gets a copy of what this one answered, if there is one."""
        serving = self._snapshot.served.get(spec.name)
        if serving is None or not serving.shadow or serving.shadow == spec.version:
            return None
        return self._snapshot.models.get(spec.name, {}).get(serving.shadow)

    def refresh(self) -> None:
        """Look at the registry anew before the next answer."""
        self._read_at = min(self._read_at, time.monotonic() - FRESH_SECONDS)

    def served_versions(self, name: str) -> list[str]:
        """Return the versions of a model that take requests; raises UnknownModel."""
        self.find(name)
        snapshot = self._current()
        serving = snapshot.served.get(name)
        return sorted(serving.versions if serving else snapshot.models[name], key=int)

    def _current(self, max_age_seconds: float = FRESH_SECONDS) -> Snapshot:
        """Return the snapshot, read anew when it is old; a Redis that is away leaves the old one.

        While one thread reads, the others use the old one, unless there is none or they are about
        to refuse a request.
        """
        now = time.monotonic()
        if now - self._read_at < max_age_seconds and now < self._next_look:
            return self._snapshot
        must_wait = max_age_seconds < FRESH_SECONDS or self._read_at == float("-inf")
        if not self._lock.acquire(blocking=must_wait):
            return self._snapshot
        try:
            if time.monotonic() - self._read_at >= max_age_seconds or self._has_changed():
                self._read(time.monotonic())
        finally:
            self._lock.release()
        return self._snapshot

    def _has_changed(self) -> bool:
        """Tell whether requests may go elsewhere since the last look; one small command."""
        self._next_look = time.monotonic() + LOOK_SECONDS
        try:
            changes, self._changes = self._changes, self._registry.changes()
        except RedisUnavailable:
            return False
        return changes != self._changes

    def _read(self, now: float) -> None:
        try:
            snapshot = self._registry.snapshot()
        except RedisUnavailable:
            if not self._snapshot.models:
                raise
            return  # the old copy serves on; push will say that Redis is away
        self._read_at, self._next_look = now, now + LOOK_SECONDS
        if self._log_level is not None:
            self._log_level.follow(snapshot.log)
        served_at = max(self._ready_at.values(), default=float("-inf"))
        if (
            not (snapshot.models or snapshot.supervised)
            and now - served_at <= RESTART_GRACE_SECONDS
        ):
            return  # Redis came back empty, and the supervisors are about to fill it again
        self._snapshot = snapshot
        for key in self._snapshot.ready:
            self._ready_at[key] = now


def _drawn(snapshot: Snapshot, name: str) -> str | None:
    """Return a version by the weights of a model's split, None when there is none."""
    serving = snapshot.served.get(name)
    if serving is None or not serving.split:
        return None
    return random.choices(list(serving.split), list(serving.split.values()))[0]


def _find(snapshot: Snapshot, name: str, version: str | None) -> ModelSpec:
    versions = snapshot.models.get(name)
    if not versions:
        raise UnknownModel(f"Request for unknown model: '{name}' is not found")
    if version is None:
        return versions[snapshot.default_version(name)]
    if version not in versions:
        raise UnknownModel(f"Request for unknown model: '{name}' version {version} is not found")
    return versions[version]
