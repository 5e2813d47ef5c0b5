"""Tells which deployments are to be looked after: something of theirs stirs, or is due."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Set
from selectors import EVENT_READ, DefaultSelector

from worker.supervisor.deployment import Deployment

LATE_LOOK_SECONDS = 0.1
"""Until what is due and could not be done is tried again."""


class Watch:
    """What one supervisor waits for: that a process ends or reports, or that time has come.

    fast: an idle supervisor with many models touches none of them, and neither does the kernel,
    which is told once whom to watch.
    """

    def __init__(self) -> None:
        """Wait for nothing yet."""
        self.stirred: set[int] = set()
        """The descriptors that ended the last wait."""
        self._ends: dict[int, Deployment] = {}
        self._reports: dict[int, Deployment] = {}
        self._due: dict[Deployment, float] = {}
        self._selector = DefaultSelector()
        self._watched: tuple[Set[int], bool] | None = None

    def follow(self, deployments: Iterable[Deployment]) -> None:
        """Watch these as they are by now: they were looked after, or are new."""
        followed = set(deployments)
        if not followed:
            return
        self.forget(followed)
        soon = time.monotonic() + LATE_LOOK_SECONDS
        for deployment in followed:
            if deployment.due_at < math.inf:
                self._due[deployment] = max(soon, deployment.due_at)
            for slot in deployment.slots:
                if slot.process is not None:
                    self._ends[slot.process.sentinel] = deployment
                if slot.reports is not None:
                    self._reports[slot.reports.fileno()] = deployment

    def forget(self, deployments: Set[Deployment]) -> None:
        """Watch these no more."""
        self._watched = None
        for watched in (self._ends, self._reports):
            for descriptor in [each for each, whose in watched.items() if whose in deployments]:
                del watched[descriptor]
        for deployment in deployments:
            self._due.pop(deployment, None)

    @property
    def due_at(self) -> float:
        """Return when a deployment is next to be looked after, though nothing stirs."""
        return min(self._due.values(), default=math.inf)

    def awake(self) -> list[Deployment]:
        """Return the deployments of which something stirred in the last wait, or is due."""
        now = time.monotonic()
        found = {each: None for each, due_at in self._due.items() if due_at <= now}
        for descriptor in self.stirred:
            whose = self._ends.get(descriptor) or self._reports.get(descriptor)
            if whose is not None:
                found[whose] = None
        return list(found)

    def wait(self, others: Set[int], seconds: float, *, reads: bool) -> None:
        """Wait until something stirs: also one of these `others`, and reports if anybody reads."""
        if self._watched != (others, reads):
            self._watched = others, reads
            # subtle: anew, for a number that was closed may stand for something else by now.
            self._selector.close()
            self._selector = DefaultSelector()
            for descriptor in {*others, *self._ends, *(self._reports if reads else ())}:
                self._selector.register(descriptor, EVENT_READ)
        self.stirred = {key.fd for key, _ in self._selector.select(seconds)}
