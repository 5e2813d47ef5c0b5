"""This machine's part of the registry: its sign of life, its models, its instances' figures.

Apart from the supervisor, which knows when: this knows what Redis may have lost of it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterable, Set

from shared.errors import RedisUnavailable
from shared.registry.registry import Registry
from worker.repository.models import ServedModel
from worker.supervisor.deployment import Deployment
from worker.supervisor.instance_slot import InstanceSlot

log = logging.getLogger(__name__)

LOOKS_PER_HEARTBEAT = 2
HEARTBEATS_PER_REFILL = 5
"""Heartbeats between two that write all of the registry, which Redis may have lost in part."""
BEAT_TERM = 3 - 1 / LOOKS_PER_HEARTBEAT
"""Heartbeats that a sign of life lasts: a loss is seen, and taken over, within three."""


class Registration:
    """One supervisor's; every method but `beat_alone` raises RedisUnavailable."""

    def __init__(self, supervisor: str, registry: Registry, heartbeat_seconds: float) -> None:
        """Beat as `supervisor`, at once for the first time."""
        self.next_beat = 0.0
        self._supervisor = supervisor
        self._registry = registry
        self._heartbeat_seconds = heartbeat_seconds
        self._beats_to_refill = 0

    def fill_again(self) -> None:
        """Have the next beat, which is due at once, write all: Redis may come back empty."""
        self.next_beat, self._beats_to_refill = 0.0, 0

    def beat(self, deployments: Collection[Deployment]) -> bool:
        """Renew our sign of life, and bring our instances' figures up to date.

        Fills the registry again when Redis has lost the sign of life, and now and then: what else
        it may have lost is not known. Tells whether it did.
        """
        was_alive = self._registry.beat(self._supervisor, BEAT_TERM * self._heartbeat_seconds)
        self._beats_to_refill -= 1
        refills = not was_alive or self._beats_to_refill < 0
        if refills:
            self._beats_to_refill = HEARTBEATS_PER_REFILL
            self.register(each.model for each in deployments if not each.leaving)
        slots = [slot for each in deployments for slot in each.slots if slot.process is not None]
        for slot in slots:
            slot.measure()
        records = {slot: slot.record() for slot in slots}
        changed = {slot: new for slot, new in records.items() if refills or new != slot.recorded}
        self._registry.put_instances(changed.values())
        for slot, record in changed.items():
            slot.recorded = record
        self.next_beat = time.monotonic() + self._heartbeat_seconds
        return refills

    def beat_alone(self) -> None:
        """Renew our sign of life, if that is due, and nothing else: we are about to stop."""
        if time.monotonic() < self.next_beat:
            return
        try:
            self._registry.beat(self._supervisor, BEAT_TERM * self._heartbeat_seconds)
        except RedisUnavailable as error:
            log.warning("no heartbeat while stopping, Redis fails: %s", error)
        self.next_beat = time.monotonic() + self._heartbeat_seconds

    def register(self, models: Iterable[ServedModel]) -> None:
        """Write models, and what API processes want of them besides."""
        models = list(models)
        self._registry.add_models(model.spec for model in models)
        for model in models:
            if model.asset is not None:
                self._registry.keep_asset(model.asset)
            if (page := model.report()) is not None:
                self._registry.keep_page(model.spec.key, page)

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
