"""The models as this process last saw them in the registry."""

from __future__ import annotations

import logging
import random
import time
import weakref
from collections.abc import Callable
from threading import Lock, Thread
from typing import TypeVar

from shared.errors import (
    BadRequest,
    FerryError,
    ModelNotReady,
    RedisUnavailable,
    UnknownModel,
    VersionRetired,
)
from shared.model_spec import ModelSpec
from shared.registry.desired_state import sent_elsewhere
from shared.registry.log_settings import LogLevel
from shared.registry.registry import Registry
from shared.registry.snapshot import Snapshot

log = logging.getLogger(__name__)

FRESH_SECONDS = 0.5
"""Age at which the copy serves no request: the one that finds it older reads anew by itself."""
OLD_SECONDS = 2.0
"""Age at which requests wait for the thread that reads, and use the old copy no longer."""
REFRESH_SECONDS = 0.35
"""Time between two reads of the refresher, of 0.2 ms each: no request finds its copy too old."""
CHANGES_LOOK_SECONDS = 0.1
"""Time between two looks of requests, whether they are to go elsewhere.

The request asks by itself, one GET, so that few are refused by a version that was replaced.
"""
AWAY_SECONDS = 1.0
"""Time for which nobody asks a Redis again whether something changed that did not answer."""
MAX_TRIES = 10
TRY_PAUSE_SECONDS = 0.05
UNASKED_SECONDS = 60.0
"""After so long without a request nobody reads ahead, and the next request reads by itself."""
REFUSAL_FRESH_SECONDS = 0.05
"""Age at which the copy is no reason to refuse a request: instances come and go uncounted."""
RESTART_GRACE_SECONDS = 15.0
"""Time that a model which was ready still takes requests while no instance of it lives.

Its instances may be restarting; what is accepted waits on the queue until its own deadline.
"""


Answer = TypeVar("Answer")


class Catalog:
    """A copy of the registry, at most half a second old, shared by the process's threads.

    The first request reads the registry. From then on, while requests come,

        every 0.35 s  a thread of the catalog's own reads it: no request waits for that
        every 0.1 s   a request asks for the counter of changes, and reads it if that is another one

    So a request may go by an old copy. Nothing comes of it: a queue refuses what is to go
    elsewhere (`DesiredStore.serve`), and who would refuse a request, or describes a model, asks for
    the counter first. `by_current` has both try again.
    """

    def __init__(self, registry: Registry, log_level: LogLevel | None = None) -> None:
        """Start empty, with no thread; each read of the registry sets the `log_level`."""
        self._registry = registry
        self._log_level = log_level
        self._snapshot = Snapshot()
        self._read_at = self._asked_at = self._stale_before = float("-inf")
        self._next_look = self._looked_at = self._away_until = float("-inf")
        self._ready_at: dict[str, float] = {}
        self._looking, self._installing, self._starting = Lock(), Lock(), Lock()
        self._has_refresher = False
        self.on_asked: Callable[[], None] = lambda: None  # when requests begin to come

    def find(self, name: str, version: str | None = None) -> ModelSpec:
        """Return a registered model, the version that serves unless one is named.

        Raises UnknownModel.
        """
        return _find(self._renewed(), name, version)

    def serving(self, name: str, version: str | None = None) -> ModelSpec:
        """Return a model that takes requests; raises UnknownModel or ModelNotReady.

        Without a version it is the one that serves, or one drawn by the weights of a split. Raises
        RedisUnavailable too, when no worker can be seen because Redis takes no writes.
        """
        self._asked_at = time.monotonic()
        if not self._has_refresher:
            self._start_refresher()
        try:
            return self._serving(self._current(), name, version)
        except (UnknownModel, ModelNotReady):
            renewed = self._renewed()
            if not renewed.supervised:  # they may be there, and a Redis that refuses their signs
                self._registry.check_writes()
            return self._serving(renewed, name, version)

    def by_current(
        self,
        attempt: Callable[[], Answer],
        misfits: tuple[type[FerryError], ...] = (BadRequest,),
    ) -> Answer:
        """Return what `attempt` returns; again where it fails by a copy older than a change.

        Its request was then refused by a version that was replaced, or for not fitting it, which
        are the `misfits`. Raises what the last attempt raises.
        """
        for number in range(1, MAX_TRIES):
            seen = self._snapshot
            try:
                return attempt()
            except VersionRetired:
                if number > 1:  # not all of the change is done
                    time.sleep(TRY_PAUSE_SECONDS)
                self.refresh()
            except misfits:
                if self._renewed().changes == seen.changes:
                    raise
        return attempt()

    def check_serves(self, spec: ModelSpec, *, named: bool) -> None:
        """Raise VersionRetired as the version's queue would, for a request that none is asked."""
        serving = self.snapshot().served.get(spec.name)
        elsewhere = sent_elsewhere(spec.key, serving) if serving is not None else ""
        if elsewhere == "all" or (elsewhere == "unnamed" and not named):
            raise VersionRetired.default()

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
        snapshot = self._renewed()
        if name in snapshot.failures and name not in snapshot.models:
            return False
        return _find(snapshot, name, version).key in snapshot.ready

    def drain_rate(self, model_key: str) -> float:
        """Return how many requests per second the model's instances answer when enough wait."""
        return self._current().drain_rate(model_key)

    def shared_memory(self, model_key: str) -> str:
        """Return the token of the shared memory that all of the model's instances see, or none."""
        return self._snapshot.memories.get(model_key, "")

    def body_stores(self, model_key: str) -> str:
        """Return the token of the body stores that all of the model's instances know, or none."""
        return self._snapshot.stores.get(model_key, "")

    @property
    def has_one_model(self) -> bool:
        """Tell whether the copy at hand, however old, has one model only; reads nothing."""
        return len(self._snapshot.models) == 1

    def specs(self) -> list[ModelSpec]:
        """Return the version that serves of every model, by name."""
        snapshot = self._current()
        return [_find(snapshot, name, None) for name in sorted(snapshot.models)]

    def snapshot(self) -> Snapshot:
        """Return the registry with every change, its instances as of half a second ago at most."""
        return self._renewed()

    def versions(self, name: str | None, version: str | None) -> list[ModelSpec]:
        """Return every version that is seen: of all models, of one, or the one named.

        Raises UnknownModel.
        """
        snapshot = self._renewed()
        if name is not None:
            _find(snapshot, name, version)
        specs = [
            spec
            for versions in snapshot.models.values()
            for spec in versions.values()
            if name in (None, spec.name) and version in (None, spec.version)
        ]
        return sorted(specs, key=lambda spec: (spec.name, int(spec.version)))

    def shadow_of(self, spec: ModelSpec) -> ModelSpec | None:
        """Return the version that is asked the same as this one, if there is one."""
        serving = self._snapshot.served.get(spec.name)
        if serving is None or not serving.shadow or serving.shadow == spec.version:
            return None
        return self._snapshot.models.get(spec.name, {}).get(serving.shadow)

    def trace_changes(self) -> dict[str, dict[str, list[str]]]:
        """Return the trace settings that were set, the last ones known while Redis is away."""
        try:
            return self._current().trace
        except RedisUnavailable:
            return self._snapshot.trace

    def refresh(self) -> None:
        """Give no copy from now on whose reading began before this moment.

        subtle: one may be under way in another thread, begun before what the caller knows of.
        """
        self._stale_before = time.monotonic()

    def served_versions(self, name: str) -> list[str]:
        """Return the versions of a model that take requests; raises UnknownModel."""
        snapshot = self._renewed()
        _find(snapshot, name, None)
        serving, versions = snapshot.served.get(name), snapshot.models[name]
        standing_by = {spec.version for spec in versions.values() if spec.key in snapshot.standby}
        return sorted({*(serving.versions if serving else versions), *standing_by}, key=int)

    def _current(self) -> Snapshot:
        """Return the snapshot, read anew when it is old; a Redis that is away leaves the old one.

        While one thread reads, the others use the old one, unless there is none, it is known to be
        stale, or nobody has read for so long that the very files may be others.
        """
        now = time.monotonic()
        is_stale = self._read_at <= self._stale_before
        if now - self._read_at < FRESH_SECONDS and now < self._next_look and not is_stale:
            return self._snapshot  # fast: nearly every request, thanks to the refresher
        is_old = now - self._read_at > OLD_SECONDS and now >= self._away_until
        self._look(FRESH_SECONDS, must_wait=is_stale or is_old)
        return self._snapshot

    def _renewed(self) -> Snapshot:
        """Return a snapshot that holds every change until now, if Redis answers."""
        is_stale = self._read_at <= self._stale_before
        if not self._snapshot.models or is_stale or time.monotonic() >= self._away_until:
            self._look(REFUSAL_FRESH_SECONDS, must_wait=True)
        return self._snapshot

    def _start_refresher(self) -> None:
        with self._starting:
            if not self._has_refresher:
                self._has_refresher = True
                # subtle: it holds the catalog weakly, or one that nobody uses would live on by it.
                arguments = (weakref.ref(self),)
                Thread(target=_refresh, args=arguments, name="ferry-catalog", daemon=True).start()
                self.on_asked()

    @property
    def asked_lately(self) -> bool:
        """Tell whether a request came within the last minute."""
        return time.monotonic() - self._asked_at <= UNASKED_SECONDS

    def read_ahead(self) -> bool:
        """Read the registry, as the refresher; False when nobody asked for long: it ends."""
        if not self.asked_lately:
            self._has_refresher = False
            return False
        try:
            # subtle: not under `_looking`: a request that finds it taken would not look by itself.
            self._read(time.monotonic())
        except RedisUnavailable:
            pass  # and nothing was ever read: the requests that come are told so
        except Exception:  # a border: requests read by themselves, and fail by it where it matters
            log.exception("the registry cannot be read ahead of requests, the next one reads it")
            self._has_refresher = False
            return False
        return True

    def _look(self, max_age_seconds: float, *, must_wait: bool) -> None:
        """Read the registry if the copy is that old, or if requests may go elsewhere."""
        asked_at = time.monotonic()
        if not self._looking.acquire(blocking=must_wait):
            return  # another thread reads
        try:
            if self._looked_at > asked_at:  # another thread did, since we asked
                if not self._snapshot.models and time.monotonic() < self._away_until:
                    raise RedisUnavailable("cannot reach Redis, it does not answer")
                return
            self._looked_at = now = time.monotonic()
            is_old = now - self._read_at >= max_age_seconds or self._read_at <= self._stale_before
            if is_old or self._has_changed():
                # subtle: it begins only here, or an older copy of the refresher's would outdo it.
                self._read(time.monotonic())
            self._next_look = now + CHANGES_LOOK_SECONDS
        finally:
            self._looking.release()

    def _has_changed(self) -> bool:
        """Tell whether requests may go elsewhere than the copy says; one small command."""
        try:
            return self._registry.changes() != self._snapshot.changes
        except RedisUnavailable:
            self._away_until = time.monotonic() + AWAY_SECONDS
            return False

    def _read(self, now: float) -> None:
        """Read the registry anew, beginning `now`."""
        try:
            snapshot = self._registry.snapshot()
        except RedisUnavailable:
            if not self._snapshot.models:
                raise  # nothing to serve by: the request that reads is told that Redis is away
            # The old copy serves on, and push will say that Redis is away. That it is stale counts
            # no more, or all requests would wait in a row to find Redis away.
            self._away_until = time.monotonic() + AWAY_SECONDS
            with self._installing:
                self._read_at = min(self._read_at, now - FRESH_SECONDS)
                if self._stale_before < now:  # else somebody knows of a change since
                    self._stale_before = float("-inf")
            return
        with self._installing:
            if now > self._read_at:  # else another thread began later and was done sooner
                self._install(snapshot, now)
                self._read_at = now  # last: who finds it fresh takes the copy without a lock

    def _install(self, snapshot: Snapshot, now: float) -> None:
        """Serve by a copy whose reading began `now`."""
        if self._log_level is not None:
            self._log_level.follow(snapshot.log)
        served_at = max(self._ready_at.values(), default=float("-inf"))
        if (
            not (snapshot.models or snapshot.supervised)
            and now - served_at <= RESTART_GRACE_SECONDS
        ):
            return  # Redis came back empty, and the supervisors are about to fill it again
        for key in snapshot.ready:  # first: a model is refused that was never ready
            self._ready_at[key] = now
        self._snapshot = snapshot


def _refresh(reference: weakref.ref[Catalog]) -> None:
    """Keep a catalog fresh, in a thread of its own, while it is asked and is not gone."""
    while True:
        time.sleep(REFRESH_SECONDS)
        catalog = reference()
        if catalog is None or not catalog.read_ahead():
            return
        del catalog


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
