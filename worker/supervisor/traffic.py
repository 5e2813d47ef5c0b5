"""Decides where requests go, when this supervisor is the one that decides.

Apart from the rollout, which every supervisor has of its own: this is for all machines.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping, Set
from typing import NamedTuple

from shared.registry.desired_state import Desired, Serving, promoted
from shared.registry.desired_store import ControlState, DesiredStore
from shared.registry.other_files import SHOWN_DIGITS, differing_contents

log = logging.getLogger(__name__)

UNNAMED_SECONDS = 15.0
"""Time that a model serves on which nobody reports: its only machine may be restarting."""


class CanaryPlan(NamedTuple):
    """The share, in per cent, that a version gets before it takes over, and for how long."""

    percent: int = 0
    seconds: float = 0.0


class Traffic:
    """The living supervisor with the lowest id decides; should two do, they decide the same."""

    def __init__(self, supervisor: str, store: DesiredStore, canary: CanaryPlan) -> None:
        """Decide as `supervisor`."""
        self._supervisor = supervisor
        self._store = store
        self._canary = canary
        self.has_canary = False
        self._unnamed_since: dict[str, float] = {}
        self._written: set[str] = set()

    def leads(self, state: ControlState) -> bool:
        """Tell whether this supervisor decides."""
        leads = self._supervisor == min(state.reports, default=self._supervisor)
        if not leads:
            self._written, self.has_canary = set(), False
        return leads

    def write_again(self) -> None:
        """Write all with the next decision: Redis may have lost what its queues refuse."""
        self._written = set()

    def promote(self, state: ControlState) -> bool:
        """Write where every model's requests go by now; raises RedisUnavailable.

        Nothing is written once anything changed since `state` was read: False, and the next look is
        for it.
        """
        changes = state.changes
        all_reports = list(state.reports.values())
        is_complete = all(report.complete for report in all_reports)
        running = {key for report in all_reports for key in report.running}
        named = {name for report in all_reports for name in report.models}
        self.has_canary = False
        # While one reads its repository, what it has is not known: nothing is taken away.
        unnamed = self._long_unnamed(state.served.keys() - named) if is_complete else set()
        for name in sorted(named | unnamed):
            reports = [report.models[name] for report in all_reports if name in report.models]
            current, desired = state.served.get(name), state.desired.get(name, Desired())
            serving = promoted(current, desired, reports, running if is_complete else None)
            if current is not None and serving is not None and not desired.split:
                serving = self._with_canary(current, serving, desired, running)
            self.has_canary |= serving is not None and bool(serving.canary)
            if serving != current or (serving and name not in self._written):
                contents = _contents(name, current, running)
                if not self._store.serve(name, serving, contents, changes):
                    return False
                changes += 1
                self._written.add(name)
                if serving != current:
                    log.info("%s: requests go to %s", name, _described(serving))
        return True

    def _with_canary(
        self, current: Serving, target: Serving, desired: Desired, running: Set[str]
    ) -> Serving:
        """Return `target`, or before it the state in which its default gets a share.

        What an operator names gets all at once, and so does new content of the version that serves.
        """
        percent, seconds = self._canary
        old, new = current.default, target.default
        key = current.versions[old]
        if not percent or new in (old, desired.use) or key not in running:
            return target
        now = time.time()
        until = current.canary_until if current.canary == new else now + seconds
        if now >= until:
            return target
        return target.model_copy(
            update={
                "versions": target.versions | {old: key}, "default": old, "canary": new,
                "split": {old: 100 - percent, new: percent}, "canary_until": until,
                "replaced": current.replaced,
            }
        )  # fmt: skip

    def _long_unnamed(self, names: set[str]) -> set[str]:
        now = time.monotonic()
        self._unnamed_since = {name: self._unnamed_since.get(name, now) for name in names}
        return {name for name, at in self._unnamed_since.items() if now - at > UNNAMED_SECONDS}


class OthersFiles:
    """Tells of versions for which other machines have other files; each time that they change."""

    def __init__(self) -> None:
        """Know of none."""
        self._told: dict[str, dict[str, str]] = {}

    def look(self, state: ControlState, here: Set[str]) -> None:
        """Log a warning for each version that is not the same on every machine and is loaded here.

        `here` are the contents (`ModelSpec.key`) on this machine.
        """
        differing = differing_contents(state.reports.values())
        for version, contents in differing.items():
            ours = contents.keys() & here
            if ours and self._told.get(version) != contents:
                name, _, number = version.partition("/")
                serving = state.served.get(name)
                served = {serving.versions.get(number, "")} if serving else set()
                log.warning(
                    "machines have different files for %s: %s here, %s elsewhere; requests go to "
                    "%s until they are the same",
                    version, _digits(contents, ours), _digits(contents, contents.keys() - ours),
                    _digits(contents, served) or "none of them",
                )  # fmt: skip
        self._told = differing


def _digits(contents: Mapping[str, str], keys: Iterable[str]) -> str:
    """Return the beginnings of some contents' digests."""
    shown = (digest[:SHOWN_DIGITS] for key, digest in contents.items() if key in set(keys))
    return ", ".join(shown)


def _contents(name: str, current: Serving | None, running: Set[str]) -> set[str]:
    """Return the contents of a model that API processes may still ask."""
    known = set(current.versions.values()) if current else set()
    return known | {key for key in running if key.partition("/")[0] == name}


def _described(serving: Serving | None) -> str:
    if serving is None:
        return "nobody"
    others = sorted(set(serving.versions) - {serving.default}, key=int)
    return f"version {serving.default}" + (f", besides {', '.join(others)}" if others else "")
