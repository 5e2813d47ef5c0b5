"""This machine's part of the registry: its sign of life, its models, its instances' figures.

Apart from the supervisor, which knows when: this knows what Redis may have lost of it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterable, Sequence, Set

from shared.errors import RedisUnavailable
from shared.registry.registry import Look, Registry
from worker.repository.models import ServedModel
from worker.supervisor.deployment import Deployment
from worker.supervisor.instance_slot import InstanceSlot

log = logging.getLogger(__name__)

LOOKS_PER_HEARTBEAT = 2
"""Where there are other supervisors, who may be lost."""
HEARTBEATS_PER_CHECK, HEARTBEATS_PER_REFILL = 6, 30
"""Heartbeats from one to the next that finds out what Redis lost, or writes all of the registry."""
BEAT_TERM = 3 - 1 / LOOKS_PER_HEARTBEAT
"""Heartbeats that a sign of life lasts: a loss is seen, and taken over, within three."""


class Registration:
    """One supervisor's; every method but `beat_alone` and `renew` raises RedisUnavailable."""

    def __init__(self, supervisor: str, registry: Registry, heartbeat_seconds: float) -> None:
        """Beat as `supervisor`, at once for the first time."""
        self.next_beat = 0.0
        self._supervisor = supervisor
        self._registry = registry
        self._heartbeat_seconds = heartbeat_seconds
        self._beats_to_refill = 0
        self.has_filled = False
        """Whether the last beat wrote all of the registry."""
        self._is_at_rest = False
        self._rested_until = time.monotonic()

    def fill_again(self) -> None:
        """Have the next beat, which is due at once, write all: Redis may come back empty."""
        self.next_beat, self._beats_to_refill = 0.0, 0

    @property
    def checks(self) -> bool:
        """Tell whether the next beat finds out what Redis lost of all that is ours."""
        return self._beats_to_refill % HEARTBEATS_PER_CHECK == 0

    def beat(
        self, deployments: Collection[Deployment], queues: Sequence[str], *, has_moved: bool
    ) -> Look:
        """Renew our sign of life, and bring our instances' figures up to date if any `has_moved`.

        Fills the registry again when Redis has lost the sign of life or a part of it, and now and
        then: what else it may have lost is not known. Returns the look that was taken beside it.

        fast: an idle machine wakes for this. Who does not move is not even looked at.
        """
        lasts = BEAT_TERM * self._heartbeat_seconds
        checks = self.checks
        look = self._registry.look(queues, (self._supervisor, lasts))
        refills = not look.was_alive or not self._beats_to_refill
        self.has_filled = refills = refills or (checks and self._has_gaps(deployments))
        self._beats_to_refill = (HEARTBEATS_PER_REFILL if refills else self._beats_to_refill) - 1
        if refills:
            self.register(each.model for each in deployments if not each.leaving)
        if refills or has_moved or not self._is_at_rest:
            self._write_figures(deployments, all_of_them=refills)
        else:
            self._rested_until = time.monotonic()
        self.next_beat = time.monotonic() + self._heartbeat_seconds
        return look

    def _has_gaps(self, deployments: Iterable[Deployment]) -> bool:
        stay = [each for each in deployments if not each.leaving]
        instances = {slot.recorded.id for each in stay for slot in each.slots if slot.recorded}
        assets = [each.model.asset for each in stay if each.model.asset is not None]
        return self._registry.lacks({each.key for each in stay}, instances, assets)

    def _write_figures(self, deployments: Iterable[Deployment], *, all_of_them: bool) -> None:
        slots = [slot for each in deployments for slot in each.slots if slot.process is not None]
        for slot in slots:
            slot.measure(self._rested_until)
        self._is_at_rest = all(slot.is_at_rest for slot in slots)
        records = {slot: slot.record() for slot in slots}
        changed = {
            slot: new for slot, new in records.items() if all_of_them or new != slot.recorded
        }
        self._registry.put_instances(changed.values())
        for slot, record in changed.items():
            slot.recorded = record

    def beat_alone(self) -> None:
        """Renew our sign of life, if that is due, and nothing else: we are about to stop."""
        if time.monotonic() < self.next_beat:
            return
        self.renew()
        self.next_beat = time.monotonic() + self._heartbeat_seconds

    def renew(self) -> None:
        """Renew our sign of life; the next beat writes all if others may have taken us for dead."""
        try:
            if not self._registry.beat(self._supervisor, BEAT_TERM * self._heartbeat_seconds):
                self.fill_again()
        except RedisUnavailable as error:
            log.warning("no heartbeat meanwhile, Redis fails: %s", error)

    def register(self, models: Iterable[ServedModel]) -> None:
        """Write models, and what API processes want of them besides."""
        models = list(models)
        self._registry.add_models(model.spec for model in models)
        for model in models:
            if model.asset is not None:
                self._registry.keep_asset(model.asset)
            if (page := model.report()) is not None:
                self._registry.keep_page(model.spec.key, page)
            if (reference := model.reference()) is not None:
                self._registry.keep_reference(model.spec.key, reference)

    def record(self, slot: InstanceSlot) -> None:
        """Write an instance's record."""
        slot.recorded = None
        record = slot.record()
        self._registry.put_instance(record)
        slot.recorded = record

    def clean(self, deployed: Set[str]) -> None:
        """Remove an earlier run's models that are not `deployed`, unless another machine has them.

        Once all models are read.
        """
        for key in self._registry.model_keys() - deployed:
            records, alive = self._registry.instances()
            if not any(each.model_key == key and each.supervisor in alive for each in records):
                self._registry.remove_model(key)
