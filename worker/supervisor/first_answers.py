"""Takes requests back from a version that took over and fails them, while the one before stands by.

A warm-up can find out that a version answers wrong, not that it refuses what clients send.
"""

from __future__ import annotations

import logging
import time

from shared.registry.desired_state import Desired, Serving
from shared.registry.desired_store import ControlState, DesiredStore
from shared.request_queue.model_statistics import Outcomes

log = logging.getLogger(__name__)

MIN_FAILED_COUNT = 5
"""Failures from which on a version is judged."""
LEAST_SHARE, TIMES_WORSE = 0.2, 2.0
"""The share of failures from which on a version is worse, and how many times the usual one."""
MIN_KNOWN_COUNT, LEAST_SHARE_OF_UNKNOWN = 20, 0.5
"""Below so many answers of the version before its usual share is not known."""
MAX_JUDGED_COUNT = 100
"""Answers after which a version is trusted."""
UNASKED_LOOK_SECONDS = 0.5
"""Time between two looks while nobody asks the version."""


class FirstAnswers:
    """Compares what the version that took over answers with what the one before did.

    Requests go back as soon as `is_worse`. Only the supervisor that decides where requests go
    looks.
    """

    def __init__(self, store: DesiredStore) -> None:
        """Watch nothing yet."""
        self._store = store
        self._counted_before: dict[tuple[str, str], Outcomes] = {}
        self._trusted: set[tuple[str, str]] = set()
        self._next_look = 0.0

    @property
    def is_watching(self) -> bool:
        """Tell whether a version is to be looked at again soon."""
        return bool(self._counted_before) and time.monotonic() >= self._next_look

    def look(self, state: ControlState) -> None:
        """Judge every version whose predecessor could answer; raises RedisUnavailable."""
        running = {key for report in state.reports.values() for key in report.running}
        taken_over = {
            name: pair
            for name, serving in state.served.items()
            if (pair := _judged(serving)) is not None and pair[1] in running
        }
        self._trusted &= set(taken_over.values())
        watched = {name: pair for name, pair in taken_over.items() if pair not in self._trusted}
        found = self._store.outcomes([key for pair in watched.values() for key in pair])
        before, self._counted_before, is_asked = self._counted_before, {}, False
        for (name, pair), new, old in zip(watched.items(), found[::2], found[1::2], strict=True):
            first = self._counted_before[pair] = before.get(pair, new)
            since = Outcomes(new.answered - first.answered, new.failed - first.failed)
            if is_worse(since, old):
                self._take_back(name, pair, since, state.desired.get(name, Desired()).generation)
            elif sum(since) >= MAX_JUDGED_COUNT:
                self._trust(name, pair, state)
            is_asked = is_asked or sum(since) > 0
        self._next_look = time.monotonic() + (0.0 if is_asked else UNASKED_LOOK_SECONDS)

    def _trust(self, name: str, pair: tuple[str, str], state: ControlState) -> None:
        """Judge it no more, nor any leader after this one; later if anything changed meanwhile."""
        serving = state.served[name]
        trusted = serving.model_copy(update={"replaced": ""})
        if serving.canary or self._store.serve(name, trusted, (), state.changes):
            self._trusted.add(pair)
            del self._counted_before[pair]

    def _take_back(
        self, name: str, pair: tuple[str, str], found: Outcomes, generation: int
    ) -> None:
        """Have requests go to the version before; unless something else is desired by now."""
        version, before = map(_version, pair)
        reason = (
            f"it took over and failed {found.failed} of its first {sum(found)} requests: "
            f"they go to version {before} again, until a higher one is there or `use` names it"
        )

        def update(now: Desired, current: Serving | None) -> Desired | None:
            if current is None or version not in (current.default, current.canary):
                return None
            if now.generation != generation:
                return None
            taken_back = now.taken_back | {version: reason}
            return now.model_copy(update={"use": before, "split": {}, "taken_back": taken_back})

        if self._store.change(name, update).taken_back.get(version) == reason:
            log.error("%s: version %s is taken back, %s", name, version, reason)


def _judged(serving: Serving) -> tuple[str, str] | None:
    """Return the content that takes over and the one before; None when there is no such version.

    Nor is there when one of them was found wanting.
    """
    new = serving.versions[serving.canary or serving.default]
    old = serving.versions[serving.default] if serving.canary else serving.replaced
    versions = {_version(new), _version(old)}
    is_other = len(versions) > 1 and old
    return (new, old) if is_other and not versions & serving.taken_back.keys() else None


def is_worse(new: Outcomes, old: Outcomes) -> bool:
    """Tell whether a version's first answers are failures that the one before would not have had.

    Clients that ask nonsense fail with both; of one that was hardly asked it is not known.
    """
    if new.failed < MIN_FAILED_COUNT:
        return False
    usual = _failed_share(old)
    least = LEAST_SHARE if sum(old) >= MIN_KNOWN_COUNT else LEAST_SHARE_OF_UNKNOWN
    return _failed_share(new) > max(least, TIMES_WORSE * usual)


def _failed_share(found: Outcomes) -> float:
    return found.failed / sum(found) if sum(found) else 0.0


def _version(key: str) -> str:
    return key.partition("@")[0].rpartition("/")[2]
