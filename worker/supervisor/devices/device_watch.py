"""Looks at the machine's GPUs at the start and again and again, each time in another process."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Set
from contextlib import AbstractContextManager, nullcontext
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, ForkServerProcess

from shared.registry.device_report import Device, DeviceReport
from shared.registry.registry import Registry
from worker.preflight.look import (
    LIMIT_SECONDS,
    failed,
    look,
    look_again,
    overdue,
    signs_of_gpus,
)

log = logging.getLogger(__name__)

LOOK_SECONDS = 10.0
"""Between two looks at a machine with GPUs; where there is no sign of one, signs are looked for."""
SLOW_LOOK_SECONDS = 60.0
"""The same where each look asks CUDA, as without NVML."""


class DeviceWatch:
    """Has one look under way at most; a look that hangs is killed, and left behind if need be.

    `has_others` tells whether the last look found other devices than the one before.
    """

    def __init__(
        self,
        context: ForkServerContext,
        gpus: str,
        starts: AbstractContextManager[None] = nullcontext(),  # noqa: B008  it has no state
    ) -> None:
        """Look at nothing yet; `gpus` is FERRY_GPUS, and `starts` bounds a process's start."""
        self._starts = starts
        self.report = DeviceReport()
        self.is_known = False
        self.has_others = False
        self.due_at = 0.0
        self._context = context
        self._gpus = gpus
        self._process: ForkServerProcess | None = None
        self._answer: Connection | None = None
        self._ended: list[ForkServerProcess] = []
        self._limit_at = math.inf
        self._signs: tuple[int, int, str] | None = None

    @property
    def descriptors(self) -> set[int]:
        """Return what becomes readable when a look is done."""
        return {self._answer.fileno()} if self._answer else set()

    def follow(self, stirred: Set[int]) -> bool:
        """Begin a look that is due, take in one that is done; tell whether anything is new."""
        now = time.monotonic()
        self._ended = [each for each in self._ended if each.is_alive()]
        if self._answer is None:
            return self._begin_if_due(now)
        if self._answer.fileno() in stirred:
            return self._take_in(self._received())
        if now >= self._limit_at:
            self._drop(kill=True)
            return self._take_in(self._without(overdue(LIMIT_SECONDS)))
        return False

    def _begin_if_due(self, now: float) -> bool:
        """Begin a look, unless it is early, an earlier one hangs, or there is no sign of a GPU."""
        if now < self.due_at:
            return False
        self.due_at = now + LOOK_SECONDS
        if self._ended:  # in its driver, where the next one would hang beside it
            return False
        before, self._signs = self._signs, signs_of_gpus()
        if self.is_known and self._signs == before and not any(self._signs):
            return False
        return self._begin(now)

    def _begin(self, now: float) -> bool:
        self._answer, theirs = self._context.Pipe(duplex=False)
        known = self.report.model_dump_json() if self.is_known else ""
        self._process = self._context.Process(target=_look, args=(theirs, self._gpus, known))
        try:
            with self._starts:
                self._process.start()
        except (OSError, EOFError) as error:  # the forkserver died: the next start brings another
            self._answer.close()
            self._answer = self._process = None
            self.due_at = now + 1.0
            log.warning("the GPUs are looked at again, no process could be started: %s", error)
            return False
        finally:
            theirs.close()
        self._limit_at = self.due_at = now + LIMIT_SECONDS
        return False

    def _received(self) -> DeviceReport:
        assert self._answer is not None, "a look is under way"
        try:
            text = self._answer.recv()
        except EOFError:
            found = self._without(failed("the process that asks torch ended"))
        else:
            found = DeviceReport.model_validate_json(text)
        self._drop(kill=False)
        return found

    def _without(self, look: DeviceReport) -> DeviceReport:
        """Return what is known after a look that told nothing: what was there is there still."""
        return self.report.model_copy(update={"host": look.host, "reason": look.reason})

    def _drop(self, *, kill: bool) -> None:
        """Leave the process alone: it ends by itself, or hangs in a driver and cannot."""
        assert self._answer is not None, "a look is under way"
        assert self._process is not None, "a look is under way"
        if kill:
            self._process.kill()
        self._ended.append(self._process)
        self._answer.close()
        self._answer = self._process = None
        self._limit_at = math.inf

    def _take_in(self, found: DeviceReport) -> bool:
        before, self.report = self.report, found
        asks_cuda = found.reason or found.note
        self.due_at = time.monotonic() + (SLOW_LOOK_SECONDS if asks_cuda else LOOK_SECONDS)
        differs = not self.is_known or _named(before) != _named(found)
        if differs:
            _say(found)
        self.has_others, self.is_known = differs and self.is_known, True
        return before != found

    def stop(self) -> None:
        """End a look that is under way."""
        if self._answer is not None:
            self._drop(kill=True)


class DeviceRegister:
    """Registers a supervisor's devices, and says which of them another one takes as well.

    Once two looks found it: one that was killed and started again seems to be two for a while.
    """

    def __init__(self, supervisor: str, registry: Registry) -> None:
        """Register nothing yet."""
        self._supervisor = supervisor
        self._registry = registry
        self._suspected: dict[str, str] = {}
        self._said: dict[str, str] = {}

    def write(self, report: DeviceReport) -> None:
        """Write a report; raises RedisUnavailable."""
        ours = {each.uuid for each in report.usable}
        found = {
            each.uuid: other
            for other, theirs in sorted(self._registry.devices().items() if ours else ())
            for each in theirs.usable
            if other != self._supervisor and each.uuid in ours
        }
        contested = {uuid: by for uuid, by in found.items() if self._suspected.get(uuid) == by}
        for uuid, by in contested.items():
            if self._said.get(uuid) != by:
                log.warning("%s: %s uses it too, share the GPUs out by FERRY_GPUS", uuid, by)
        self._suspected, self._said = found, contested
        shown = report.model_copy(update={"contested": contested})
        self._registry.put_devices(self._supervisor, shown)


def _named(report: DeviceReport) -> tuple[str, list[tuple[str, bool, str]]]:
    return report.reason, [(each.uuid, each.used, each.fault) for each in report.devices]


def _say(report: DeviceReport) -> None:
    """Log the devices that there are by now, and why some are not used."""
    for each in report.devices:
        log.info("%s: %s", each.place or "unused", described(each))
        if each.fault:
            log.warning("%s %s", each.uuid, each.fault)
    if report.reason:
        rest = "" if report.usable else "; models without KIND_GPU run on the CPU"
        log.warning("%s%s", report.reason, rest)


def described(device: Device) -> str:
    """Return a device in a few words."""
    size = f"{device.memory_bytes / 2**30:.0f} GiB" if device.memory_bytes else ""
    mode = "" if device.compute_mode == "DEFAULT" else device.compute_mode
    not_ours = "" if device.used else "not this worker's"
    return ", ".join(filter(None, (device.name, device.uuid, size, mode, not_ours)))


def _look(answer: Connection, gpus: str, known: str) -> None:
    """Send the report: the body of a process that the forkserver made, which has torch already."""
    report = look_again(DeviceReport.model_validate_json(known), gpus) if known else look(gpus)
    answer.send(report.model_dump_json())
