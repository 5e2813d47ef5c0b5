"""Whether requests are taken: by the server as FERRY_READINESS says, by a model, and why not."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from threading import Lock, Thread

from shared.errors import RedisUnavailable
from shared.registry.catalog import Catalog
from shared.registry.repository_index import repository_index
from shared.registry.snapshot import Snapshot

STRICT, ANY = "strict", "any"
MOST_NAMED = 10
SEEK_SECONDS = 0.1


class Pulse:
    """Whether Redis answers, said at once also while it hangs: then only a thread waits for it."""

    def __init__(self, ping: Callable[[], None]) -> None:
        """Ask by `ping`, which raises RedisUnavailable."""
        self._ping = ping
        self._lost: RedisUnavailable | None = None
        self._losing = Lock()

    @property
    def is_lost(self) -> bool:
        """Tell whether Redis did not answer when it was asked last."""
        return self._lost is not None

    def check(self) -> None:
        """Raise RedisUnavailable unless Redis answers; while it is known not to, without asking."""
        if lost := self._lost:
            raise RedisUnavailable(lost.message)
        try:
            self._ping()
        except RedisUnavailable as error:
            self._lose(error)
            raise

    def _lose(self, error: RedisUnavailable) -> None:
        with self._losing:
            if self._lost is None:
                self._lost = error
                Thread(target=self._seek, name="ferry-seek", daemon=True).start()

    def _seek(self) -> None:
        while self._lost is not None:
            time.sleep(SEEK_SECONDS)
            try:
                self._ping()
            except RedisUnavailable as error:
                self._lost = error
            else:
                self._lost = None


class Readiness:
    """Answers for HTTP's and gRPC's health routes alike."""

    def __init__(self, catalog: Catalog, pulse: Pulse, rule: str) -> None:
        """Look into `catalog` while `pulse` is there; the `rule` is FERRY_READINESS."""
        self._catalog = catalog
        self.pulse = pulse
        self._rule = rule

    def why_not(self) -> str:
        """Return why the server is not ready now, an empty string when it is."""
        try:
            self.pulse.check()
            return why_not_ready(self._catalog.snapshot(), self._rule)
        except RedisUnavailable as error:
            return error.message

    def why_model_not(self, name: str, version: str | None) -> str:
        """Return why no instance serves a model, an empty string when one does.

        Raises UnknownModel and RedisUnavailable.
        """
        if self._catalog.is_ready(name, version):
            return ""
        return _reasons(self._catalog.snapshot(), version).get(name, "no worker has loaded it")


def why_not_ready(snapshot: Snapshot, rule: str) -> str:
    """Return why a server with this snapshot is not ready by the rule, an empty string if it is.

    `strict` wants every model, as Triton does; without any it is enough that a worker is there.
    `any` wants one of them, a list of names these.
    """
    if not (snapshot.supervised or snapshot.models):
        return "no worker is there"
    if rule not in (STRICT, ANY):
        return _said(snapshot, [name.strip() for name in rule.split(",")])
    if rule == ANY and any(map(snapshot.is_ready, snapshot.models)):
        return ""
    return _said(snapshot, sorted(snapshot.models.keys() | snapshot.failures.keys())) or (
        "" if snapshot.is_complete else "a worker still reads its repository"
    )


def _said(snapshot: Snapshot, names: Iterable[str]) -> str:
    """Return which of these models are not ready, each with its reason."""
    reasons = _reasons(snapshot)
    found = [
        f"{name}: {reasons.get(name, 'no such model')}"
        for name in names
        if not snapshot.is_ready(name)
    ]
    more = [f"and {len(found) - MOST_NAMED} more"] if len(found) > MOST_NAMED else []
    return "; ".join(found[:MOST_NAMED] + more)


def _reasons(snapshot: Snapshot, version: str | None = None) -> dict[str, str]:
    """Return of each model the reason of its last version, or this one, that is not ready."""
    return {
        entry["name"]: entry["reason"] or entry["state"].lower()
        for entry in repository_index(snapshot)
        if entry["state"] != "READY" and version in (None, entry.get("version"))
    }
