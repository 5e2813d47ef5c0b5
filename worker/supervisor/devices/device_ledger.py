"""Remembers which of this machine's devices failed, and starts nothing where that goes on.

Two things close a device. A process that survives SIGKILL is stuck in its driver, and so
would be the next. And a device is quarantined that fails again and again under a model which
other devices serve: it is not the model, and by comparison with these it is not the requests.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, defaultdict
from collections.abc import Collection
from multiprocessing.process import BaseProcess
from statistics import mean
from typing import NamedTuple

log = logging.getLogger(__name__)

WINDOW_SECONDS = 600.0
"""For so long a fault counts."""
MIN_FAULTS, TIMES_MORE = 3, 3.0
"""From how many faults on a device may be quarantined, and how many times those of others and one.
"""
SETTLE_SECONDS = 5.0
"""Until a fault counts: a request that kills devices is run again meanwhile, and kills another."""
QUARANTINE_SECONDS = 600.0
LONGEST_QUARANTINE_SECONDS = 6 * 3600.0
"""How long a quarantine lasts; each is twice as long as the one before, up to this."""
NEVER_CLOSED = "cpu"
Key = str


class Quarantine(NamedTuple):
    """A device's closed time: until when (monotonic seconds), and why."""

    until: float
    reason: str
    seconds: float


class Fault(NamedTuple):
    """One failure of a device; `suspects` are the ids of the requests that ran, if any did."""

    device: str
    at: float
    suspects: frozenset[str]


class DeviceLedger:
    """The devices of one supervisor, by what people know them by. The CPU is never closed."""

    def __init__(self) -> None:
        """Know of no fault."""
        self._fault_counts: dict[str, int] = defaultdict(int)
        self._faults: dict[Key, list[Fault]] = defaultdict(list)
        self._served_on: dict[Key, set[str]] = defaultdict(set)
        self._quarantines: dict[str, Quarantine] = {}
        self._stuck: dict[str, list[tuple[str, BaseProcess]]] = defaultdict(list)

    @property
    def is_clean(self) -> bool:
        """Tell whether no device ever failed, or has a process that does not die."""
        return not self._fault_counts and not self._stuck

    def served(self, key: Key, device: str) -> None:
        """Note that a content got ready on a device."""
        self._served_on[key].add(device)

    def is_served_beside(self, key: Key, device: str) -> bool:
        """Tell whether a content got ready on other devices than this one."""
        return bool(self._served_on[key] - {device})

    def forget(self, key: Key) -> None:
        """Forget a content that has left."""
        self._served_on.pop(key, None)
        self._faults.pop(key, None)

    def fault_count(self, device: str) -> int:
        """Return how often a device failed since the supervisor started."""
        return self._fault_counts.get(device, 0)

    def failed(self, key: Key, device: str, suspects: Collection[str] = ()) -> None:
        """Note that a device failed under a content; quarantine it if others do so less."""
        now = time.monotonic()
        recent = [each for each in self._faults[key] if now - each.at < WINDOW_SECONDS]
        self._faults[key] = [*recent, Fault(device, now, frozenset(suspects))]
        self._fault_counts[device] += 1
        others = self._others(key, device)
        if device == NEVER_CLOSED or not others or self.is_quarantined(device):
            return
        own = self._own_faults(key)
        count = own[device]
        if count >= max(MIN_FAULTS, TIMES_MORE * (mean(own[each] for each in others) + 1.0)):
            self._quarantine(device, count, key)

    def _others(self, key: Key, device: str) -> list[str]:
        """Return the other devices that served a content and are open: somebody must go on."""
        return [each for each in self._served_on[key] - {device} if not self.why_closed(each)]

    def _own_faults(self, key: Key) -> Counter[str]:
        """Count each device's faults that are no request's.

        A request that kills devices runs twice and kills twice, on one device or on two; what ran
        beside it the first time died of it once. A device that is bad fails requests once which are
        answered elsewhere then.
        """
        faults, settled = self._faults[key], time.monotonic() - SETTLE_SECONDS
        deaths = Counter(suspect for fault in faults for suspect in fault.suspects)
        return Counter(
            fault.device
            for fault in faults
            if not any(deaths[suspect] > 1 for suspect in fault.suspects)
            and (fault.at < settled or not fault.suspects)
        )

    def _quarantine(self, device: str, count: int, key: Key) -> None:
        before, now = self._quarantines.get(device), time.monotonic()
        is_again = before is not None and now - before.until < before.seconds
        seconds = 2 * before.seconds if before and is_again else QUARANTINE_SECONDS
        seconds = min(seconds, LONGEST_QUARANTINE_SECONDS)
        reason = (
            f"{device} is quarantined for {seconds:.0f} s: it failed {count} times under {key}, "
            "which other devices serve"
        )
        self._quarantines[device] = Quarantine(now + seconds, reason, seconds)
        log.error("%s; they go on", reason)

    def is_quarantined_for(self, key: Key, device: str) -> bool:
        """Tell whether a content is to leave a device: other devices that are open serve it."""
        return self.is_quarantined(device) and bool(self._others(key, device))

    def is_quarantined(self, device: str) -> bool:
        """Tell whether a device is to be left alone."""
        found = self._quarantines.get(device)
        return found is not None and time.monotonic() < found.until

    def fence(self, device: str, instance: str, process: BaseProcess) -> None:
        """Note a process that will not die. What else runs on its device may go on."""
        self._stuck[device].append((instance, process))

    @property
    def has_stuck(self) -> bool:
        """Tell whether a process is left that nobody can end."""
        return any(process.is_alive() for found in self._stuck.values() for _, process in found)

    def why_closed_to(self, key: Key, device: str) -> str:
        """Return why a content is not to be started on a device, an empty string if it may.

        One that no other device serves has nowhere else to go.
        """
        if self.is_quarantined(device) and not self.is_quarantined_for(key, device):
            return self._why_fenced(device)
        return self.why_closed(device)

    def why_closed(self, device: str) -> str:
        """Return why a device is closed, an empty string if it is open."""
        if device == NEVER_CLOSED:
            return ""
        if self.is_quarantined(device):
            return self._quarantines[device].reason
        return self._why_fenced(device)

    def _why_fenced(self, device: str) -> str:
        left = [each for each in self._stuck.pop(device, []) if each[1].is_alive()]
        if not left:
            return ""
        self._stuck[device] = left
        return f"{device} is fenced: process {left[0][1].pid} of {left[0][0]} does not die"
